"""What is in a heap of files: each DICOM object's series and kind, from a glance at its header."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import is_dicom, read_dicom, text, value

_LOG = logging.getLogger(__name__)
_INDEX_TAGS = ["SOPClassUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "Rows"]
_NOT_IMAGES = {
    "SEG": "segmentation",
    "SR": "structured report",
    "KO": "key object selection",
    "PR": "presentation state",
    "RTSTRUCT": "radiotherapy structure set",
    "RTPLAN": "radiotherapy plan",
    "RTDOSE": "radiotherapy dose grid",
    "RTRECORD": "radiotherapy treatment record",
    "REG": "registration",
    "PMAP": "parametric map",
}
_NOT_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
}
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Entry:
    """What one file is, from a glance at its header."""

    path: Path
    series_uid: str
    modality: str
    description: str
    not_image: str | None


@dataclass(frozen=True)
class LeftOut:
    """A file that is no DICOM object that could be read.

    Attributes:
        path: the file.
        sentence: what it is instead.
        damaged: whether it starts like DICOM; then it may be a slice that is missed.
    """

    path: Path
    sentence: str
    damaged: bool


def group_series(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Sort files by Series Instance UID; images and other objects alike.

    Files that are not DICOM, DICOMDIRs and damaged headers are left out and counted in the log.
    """
    groups: dict[str, list[Path]] = {}
    for entry in look_at(paths)[0]:
        groups.setdefault(entry.series_uid, []).append(entry.path)
    return groups


def look_at(paths: Iterable[Path]) -> tuple[list[Entry], list[LeftOut]]:
    """The DICOM objects among ``paths``, and the files that are none."""
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    for path in map(Path, paths):
        if not is_dicom(path):
            left_out.append(LeftOut(path, f"{path}: not a DICOM file.", damaged=False))
            continue
        try:
            entry = _glance(path)
        except VolumeError as error:
            left_out.append(LeftOut(path, str(error), damaged=True))
            continue
        if entry is None:
            left_out.append(LeftOut(path, f"{path}: a DICOMDIR, not an image.", damaged=False))
        else:
            entries.append(entry)
    if left_out:
        _LOG.info("%d of %d files are no DICOM objects and were left out", len(left_out), len(left_out) + len(entries))
    return entries, left_out


def _glance(path: Path) -> Entry | None:
    header = read_dicom(path, pixels=False, tags=_INDEX_TAGS)
    sop_class = text(header, "SOPClassUID", path) or text(header.file_meta, "MediaStorageSOPClassUID", path)
    if sop_class == _MEDIA_DIRECTORY:
        return None
    uid = text(header, "SeriesInstanceUID", path)
    image = value(header, "Rows", path) is not None
    if not sop_class or not (uid or image):
        raise VolumeError(f"{path}: the DICOM file lacks a SOP Class UID or Series Instance UID.")
    modality = text(header, "Modality", path)
    not_image = _NOT_IMAGE_CLASSES.get(sop_class) or _NOT_IMAGES.get(modality)
    if not_image is None and not image:
        not_image = f"{UID(sop_class).name} without an image"
    return Entry(path, uid, modality or "no modality", text(header, "SeriesDescription", path), not_image)
