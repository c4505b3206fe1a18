"""What an instance says that it is, read from its header as far as its study."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from semiseg.errors import InputError, VolumeError
from semiseg.volumes.dicom_file import read_dicom, text
from server.gateway.names import Names
from server.gateway.patients import TAGS, legible, marks_of
from server.gateway.uids import UidRule, breaks_the_standard

LAST = 0x00201208  # Number of Study Related Instances
_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfStudyRelatedInstances"]
LARGEST_COUNT = 10**7  # instances of one study; a larger number is no count but an error of whoever wrote it


class NotOurs(InputError):  # noqa: N818 - a refusal
    """What came is no instance, or not the one that it was announced as.

    Attributes:
        identity: Identity that the instance claims, None where it could not be read.
    """

    def __init__(self, sentence: str, identity: Identity | None = None) -> None:
        super().__init__(sentence)
        self.identity = identity


@dataclass(frozen=True)
class Identity:
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


def identity_of(file: Path, names: Names, uids: UidRule) -> Identity:
    """Read an instance's header as far as its study.

    Args:
        file: The instance.
        names: Keyed hashes of what says of which patient it is.
        uids: Rule by which UIDs are refused.

    Raises:
        NotOurs: The file is no DICOM, lacks a UID that it needs, or has one that breaks PS3.5 9.1. The sentence
            quotes nothing of the file, since it goes into logs.
    """
    try:
        header = read_dicom(file, pixels=False, tags=[*TAGS, *_TAGS], last=LAST)
        found = {keyword: text(header, keyword, file) for keyword in _TAGS}
    except VolumeError as error:
        what = "is not a DICOM file" if "not a DICOM file" in str(error) else "is a damaged DICOM file"
        raise NotOurs(f"The instance {what}.") from None
    for keyword in _TAGS[:4]:
        if not found[keyword]:
            raise NotOurs(f"The instance has no {keyword}.")
    identity = Identity(
        found["SOPClassUID"],
        found["SOPInstanceUID"],
        found["StudyInstanceUID"],
        found["SeriesInstanceUID"],
        count_in(found["NumberOfStudyRelatedInstances"]),
        tuple(marks_of(legible(header, file), names)),
    )
    for keyword in _TAGS[:4]:
        if wrong := breaks_the_standard(found[keyword], uids):
            raise NotOurs(f"The {keyword} of the instance {wrong}.", identity)
    return identity


def count_in(written: object) -> int | None:
    """A number of instances as an IS or JSON number writes it; None for zero, for nonsense and for what is no number.

    Such numbers ((0020,1208), (0020,1209)) are hints: nothing goes wrong without them.
    """
    text = str(written).strip()
    digits = text.removeprefix("+")
    if isinstance(written, bool) or not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
        return None
    return int(digits) if 0 < int(digits) <= LARGEST_COUNT else None
