"""What an instance says that it is, read from its header as far as its study."""

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
MAX_INSTANCES = 10**7  # instances of one study; a larger number is no count but an error of whoever wrote it


class InvalidInstance(InputError):  # noqa: N818 - a refusal
    """What came is no instance, or not the one that it was announced as.

    Attributes:
        identity: Identity that the instance claims, None where it could not be read.
    """

    def __init__(self, sentence: str, identity: InstanceIdentity | None = None) -> None:
        super().__init__(sentence)
        self.identity = identity


@dataclass(frozen=True)
class InstanceIdentity:
    """What an instance says that it is.

    Attributes:
        sop_class, instance, study, series: UIDs.
        announced: Number of instances that its study has by its own account, or None.
        marks: Names of the files that say of which patient and order it is, as keyed hashes.
    """

    sop_class: str
    instance: str
    study: str
    series: str
    announced: int | None
    marks: tuple[str, ...] = field(default=(), repr=False)


def read_identity(file: Path, hasher: UidHasher, uids: UidRule) -> InstanceIdentity:
    """Read an instance's header as far as its study.

    Args:
        file: The instance.
        hasher: Keyed hashes of what says of which patient it is.
        uids: Rule by which UIDs are refused.

    Raises:
        InvalidInstance: The file is no DICOM, lacks a UID that it needs, or has one that breaks PS3.5 9.1. The sentence
            quotes nothing of the file, since it goes into logs.
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
    """A number of instances as an IS or JSON number writes it; None for zero, for nonsense and for what is no number.

    Such numbers ((0020,1208), (0020,1209)) are hints: nothing goes wrong without them.
    """
    text = str(written).strip()
    digits = text.removeprefix("+")
    if isinstance(written, bool) or not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
        return None
    return int(digits) if 0 < int(digits) <= MAX_INSTANCES else None
