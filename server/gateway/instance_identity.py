"""Identity of an instance, read from its header up to the attributes of its study."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from semiseg.errors import InputError, VolumeError
from semiseg.volumes.dicom_file import read_dicom, text
from server.gateway.patient_marks import PATIENT_TAGS, mark_names, readable_values
from server.gateway.uid_hasher import UidHasher
from server.gateway.uids import UidRule, uid_error

LAST_TAG = 0x00201208  # Number of Study Related Instances
_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfStudyRelatedInstances"]
MAX_INSTANCES = 10**7  # instances of one study; a larger number is taken for an error


class InvalidInstance(InputError):  # noqa: N818 - a refusal
    """The received data is not a DICOM instance, or not the announced one.

    Attributes:
        identity: Identity that the instance claims, None where it could not be read.
    """

    def __init__(self, sentence: str, identity: InstanceIdentity | None = None) -> None:
        super().__init__(sentence)
        self.identity = identity


@dataclass(frozen=True)
class InstanceIdentity:
    """Identity of an instance according to its header.

    Attributes:
        sop_class, instance, study, series: UIDs.
        announced: Number of Study Related Instances (0020,1208), or None.
        marks: Names of the files that identify patient and order by keyed hashes.
    """

    sop_class: str
    instance: str
    study: str
    series: str
    announced: int | None
    marks: tuple[str, ...] = field(default=(), repr=False)


def read_identity(file: Path, hasher: UidHasher, uids: UidRule) -> InstanceIdentity:
    """Read an instance's header up to the attributes of its study.

    Args:
        file: File of the instance.
        hasher: Keyed hashes for the attributes of the patient.
        uids: Rule by which UIDs are validated.

    Raises:
        InvalidInstance: The file is not DICOM, lacks a required UID, or has one that violates PS3.5 9.1. The message
            quotes nothing of the file, because it is logged.
    """
    try:
        header = read_dicom(file, pixels=False, tags=[*PATIENT_TAGS, *_TAGS], last=LAST_TAG)
        found = {keyword: text(header, keyword, file) for keyword in _TAGS}
    except VolumeError as error:
        what = "is not a DICOM file" if "not a DICOM file" in str(error) else "is a damaged DICOM file"
        raise InvalidInstance(f"The instance {what}.") from None
    for keyword in _TAGS[:4]:
        if not found[keyword]:
            raise InvalidInstance(f"The instance has no {keyword}.")
    identity = InstanceIdentity(
        found["SOPClassUID"],
        found["SOPInstanceUID"],
        found["StudyInstanceUID"],
        found["SeriesInstanceUID"],
        parse_count(found["NumberOfStudyRelatedInstances"]),
        tuple(mark_names(readable_values(header, file), hasher)),
    )
    for keyword in _TAGS[:4]:
        if wrong := uid_error(found[keyword], uids):
            raise InvalidInstance(f"The {keyword} of the instance {wrong}.", identity)
    return identity


def parse_count(written: object) -> int | None:
    """Parse a number of instances, written as IS or JSON number; None for zero, implausible values and other text.

    Such numbers ((0020,1208), (0020,1209)) are optional hints.
    """
    text = str(written).strip()
    digits = text.removeprefix("+")
    if isinstance(written, bool) or not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
        return None
    return int(digits) if 0 < int(digits) <= MAX_INSTANCES else None
