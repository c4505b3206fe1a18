"""What the status of an answer means for an instance that was sent, by the tables of the standard."""

from __future__ import annotations

from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

DUPLICATE = 0x0111  # PS3.7 Annex C: an instance of this UID is there already
ALREADY_STORED = 45070  # 0xB00E, Azure's reason of the same meaning: "has already been stored"
COMMITTED_ELSEWHERE = 0x0131
SYNTAX_NOT_SUPPORTED = 0xC122  # PS3.18 table I.2-2: Referenced Transfer Syntax Not Supported

_NAMES = {
    0x0000: "Success",
    0x0001: "Requested Optional Attributes Are Not Supported",
    0x0111: "Duplicate SOP Instance",
    0x0117: "Invalid SOP Instance",
    0x0124: "Refused: Not Authorized",
    COMMITTED_ELSEWHERE: "Duplicate Transaction UID",
    0xB006: "Elements Discarded",
    SYNTAX_NOT_SUPPORTED: "Referenced Transfer Syntax Not Supported",
    ALREADY_STORED: "Already Stored",
    0xFE00: "Cancel",
}


def is_warning(status: int) -> bool:
    """Whether the instance was stored, with a remark (PS3.7 Annex C: 0001, 0107, 0116 and Bxxx; PS3.4 table B.2-1)."""
    return status in (0x0001, 0x0107, 0x0116) or 0xB000 <= status <= 0xBFFF


def is_stored(status: int) -> bool:
    """Whether the archive has the instance after a C-STORE with this status.

    A result's UID is made of the source instances and the model, so one that is there already is the same one.
    """
    return status == 0x0000 or status == DUPLICATE or is_warning(status)


def is_already_stored(reason: int) -> bool:
    """Whether a Failure Reason (0008,1197) of a STOW-RS answer says that the archive has had the instance before."""
    return reason in (DUPLICATE, ALREADY_STORED)


def describe(status: int) -> str:
    """The status in hexadecimal and, where the standard has one, its name."""
    _, name = STORAGE_SERVICE_CLASS_STATUS.get(status, ("", ""))
    name = _NAMES.get(status) or name or ("a warning" if is_warning(status) else "a status that the standard lacks")
    return f"0x{status:04X} ({name})"
