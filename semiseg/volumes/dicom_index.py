"""Indexes a set of files: the series, type and position of each DICOM object, read from its header."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import DicomHeader, numbers, read_dicom, read_header, text, value
from semiseg.volumes.dicom_geometry import Plane
from semiseg.volumes.dicom_slices import read_slices

_LOG = logging.getLogger(__name__)
_NOT_IMAGES = {
    "SEG": "segmentation",
    "SR": "structured report",
    "KO": "key object selection",
    "PR": "presentation state",
    "RTSTRUCT": "radiotherapy structure set",
    "RTPLAN": "radiotherapy plan",
    "RTDOSE": "radiotherapy dose grid",
    "RTIMAGE": "radiotherapy image",
    "RTRECORD": "radiotherapy treatment record",
    "REG": "registration",
    "PMAP": "parametric map",
}
_NOT_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
}
_MARKS = (".done", ".ini", ".json", ".lock", ".log", ".md", ".txt", ".xml")
"""Suffixes of files that may be empty without any data having been lost."""
_IMAGE_NAMES = (".dcm", ".dicom", ".ima")
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class DicomObject:
    """Description of one DICOM file, from its header.

    Attributes:
        path: Path of the file.
        sop_class, instance: SOP Class and SOP Instance UID.
        series, study, frame: Series Instance UID, Study Instance UID, Frame of Reference UID; "" where absent.
        modality: "no modality" where absent.
        description: Series Description.
        body_part: Body Part Examined.
        image_type: Image Type, as text.
        patient, patient_name: Patient ID and name.
        non_image_kind: Type of an object that is not an image, such as "segmentation"; None for an image.
        companion: True for an object without an image that scanners and readers put beside the images of a series.
        frames: Number of frames.
        planes: Positions of the frames; empty if they are not given, or the object is not a grey-value image.
        header: Whole header; None if it was not kept.
    """

    path: Path
    sop_class: str
    instance: str
    series: str
    study: str
    frame: str
    modality: str
    description: str
    body_part: str
    image_type: str
    patient: str
    patient_name: str
    non_image_kind: str | None
    companion: bool
    frames: int
    planes: tuple[Plane, ...]
    header: DicomHeader | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class SkippedFile:
    """A file that is not a readable DICOM object.

    Attributes:
        path: Path of the file.
        sentence: Message that names the file and the reason.
        damaged: True if it starts like DICOM, or is empty; it may be a missing slice.
        like_dicom: True if it starts like DICOM.
        is_dicomdir: True for a DICOMDIR.
    """

    path: Path
    sentence: str
    damaged: bool = False
    like_dicom: bool = False
    is_dicomdir: bool = False


def index_files(paths: Iterable[Path], *, keep_headers: bool = False) -> tuple[list[DicomObject], list[SkippedFile]]:
    """Read the headers of files.

    Args:
        paths: Files to index.
        keep_headers: If True, the objects' headers, several kilobytes each, are kept for later reading.

    Returns:
        The DICOM objects, and the files that are not DICOM objects.
    """
    objects: list[DicomObject] = []
    left_out: list[SkippedFile] = []
    for path in map(Path, paths):
        found = read_entry(path, keep_header=keep_headers)
        if isinstance(found, DicomObject):
            objects.append(found)
        else:
            left_out.append(found)
    if left_out:
        _LOG.info("%d of %d files are not DICOM objects; skipped", len(left_out), len(left_out) + len(objects))
    return objects, left_out


def read_entry(path: Path, *, keep_header: bool = False) -> DicomObject | SkippedFile:
    """Read the header of one file; the file is opened and parsed once."""
    try:
        header = read_header(path)
        if header is None:
            empty = path.stat().st_size == 0
            what = "the file is empty" if empty else "not a DICOM file"
            return SkippedFile(path, f"{path}: {what}.", damaged=empty and path.suffix.lower() not in _MARKS)
        return _glance(header, keep_header)
    except VolumeError as error:
        return SkippedFile(path, str(error), damaged=True, like_dicom=True)


def dicomdir_files(path: Path) -> list[Path]:
    """Return the files that a DICOMDIR lists (PS3.3 F.3) and that exist below its own folder.

    Raises:
        VolumeError: The DICOMDIR cannot be read, or none of the listed files exists.
    """
    records = read_dicom(path, pixels=False).get("DirectoryRecordSequence") or []
    base = path.parent.resolve()
    listed = []
    for record in records:
        parts = value(record, "ReferencedFileID", path)
        if parts is not None:
            listed.append(base.joinpath(*([parts] if isinstance(parts, str) else map(str, parts))).resolve())
    found = [file for file in listed if file.is_relative_to(base) and file.is_file()]
    if not found:
        raise VolumeError(
            f"{path}: a DICOMDIR, whose {len(listed)} listed file(s) do not exist; send the files themselves."
        )
    return found


def possible_slices(
    left_out: Sequence[SkippedFile], objects: Sequence[DicomObject], names: Mapping[Path, str] | None = None
) -> list[SkippedFile]:
    """Return the skipped files that may be slices: damaged or empty ones, and those named like the DICOM objects.

    A name counts as alike if it ends with a suffix such as .dcm, or differs from the name of a DICOM object in the
    same folder only in its numbers (IM0001).

    Args:
        left_out, objects: Results of :func:`index_files`.
        names: Original names of the files, if their paths are copies under other names.
    """

    def called(path: Path) -> Path:
        return Path((names or {}).get(path) or path)

    shapes = {_shape(called(one.path)) for one in objects}
    return [
        one
        for one in left_out
        if one.damaged
        or (not one.is_dicomdir and called(one.path).suffix.lower() in _IMAGE_NAMES)
        or _shape(called(one.path)) in shapes
    ]


def _shape(path: Path) -> tuple[str, str]:
    """Return a file's folder, and its name with "#" for every number or group of numbers joined by points."""
    shape = re.sub(r"\d+(\.\d+)*", "#", path.name)
    return str(path.parent), path.name if shape == "#" else shape  # a name of numbers alone has no pattern


def is_dicomdir(path: Path) -> bool:
    """Return True if a file is a DICOMDIR."""
    found = read_entry(path)
    return isinstance(found, SkippedFile) and found.is_dicomdir


def _glance(whole: DicomHeader, keep_header: bool) -> DicomObject | SkippedFile:
    path, header = whole.path, whole.dataset

    def said(keyword: str) -> str:
        return text(header, keyword, path)

    sop_class = said("SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID", path)
    if sop_class == _MEDIA_DIRECTORY:
        return SkippedFile(path, f"{path}: a DICOMDIR, not an image.", like_dicom=True, is_dicomdir=True)
    uid, modality = said("SeriesInstanceUID"), said("Modality")
    image = whole.has_pixels and value(header, "Rows", path) is not None
    if not sop_class or not (uid or image):
        raise VolumeError(f"{path}: the DICOM file lacks a SOP Class UID or Series Instance UID.")
    non_image_kind = _NOT_IMAGE_CLASSES.get(sop_class) or _NOT_IMAGES.get(modality)
    if non_image_kind is None and not image:
        known = UID(sop_class).name
        non_image_kind = f"{'private object' if known == sop_class else known} without an image"
    planes: tuple[Plane, ...] = ()
    if non_image_kind is None:
        try:
            planes = tuple(one.plane for one in read_slices(whole))
        except VolumeError:
            planes = ()  # the error is raised again when the image is read
    return DicomObject(
        path=path,
        sop_class=sop_class,
        instance=said("SOPInstanceUID") or text(header.file_meta, "MediaStorageSOPInstanceUID", path),
        series=uid,
        study=said("StudyInstanceUID"),
        frame=said("FrameOfReferenceUID"),
        modality=modality or "no modality",
        description=said("SeriesDescription"),
        body_part=said("BodyPartExamined"),
        image_type=said("ImageType"),
        patient=said("PatientID"),
        patient_name=said("PatientName"),
        non_image_kind=non_image_kind,
        companion=non_image_kind is not None and (not image or non_image_kind == "raw data"),
        frames=len(planes) or max(1, round((numbers(header, "NumberOfFrames", path) or [1.0])[0])),
        planes=planes,
        header=whole if keep_header else None,
    )
