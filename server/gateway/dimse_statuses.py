"""Meaning of response statuses for instances that were sent, by the tables of the standard."""

from __future__ import annotations

from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

DUPLICATE = 0x0111  # PS3.7 Annex C: an instance with this UID exists already
ALREADY_STORED = 45070  # 0xB00E, Azure's reason with the same meaning: "has already been stored"
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
    """Return True if the instance was stored with a warning.

    The codes are those of PS3.7 Annex C (0001, 0107, 0116 and Bxxx) and PS3.4 table B.2-1.
    """
    return status in (0x0001, 0x0107, 0x0116) or 0xB000 <= status <= 0xBFFF


def is_stored(status: int) -> bool:
    """Return True if the archive has the instance after a C-STORE with this status.

    The UID of a result is derived from the source instances and the model, so an existing instance with the same UID is
    the same result.
    """
    return status == 0x0000 or status == DUPLICATE or is_warning(status)


def is_already_stored(reason: int) -> bool:
    """Return True if a Failure Reason (0008,1197) of a STOW-RS response means that the instance is already stored."""
    return reason in (DUPLICATE, ALREADY_STORED)


def describe(status: int) -> str:
    """Describe a status: its hexadecimal value, and its name if the standard defines one."""
    _, name = STORAGE_SERVICE_CLASS_STATUS.get(status, ("", ""))
    name = _NAMES.get(status) or name or ("a warning" if is_warning(status) else "not defined by the standard")
    return f"0x{status:04X} ({name})"
