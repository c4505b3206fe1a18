"""What is in a heap of files: each DICOM object's series, kind and place, from a glance at its header."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import is_dicom, read_dicom, text, value
from semiseg.volumes.dicom_geometry import Plane
from semiseg.volumes.dicom_slices import slices_of

_LOG = logging.getLogger(__name__)
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality",
    "SeriesDescription", "BodyPartExamined", "ImageType", "PatientID", "PatientName", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
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
}
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class DicomObject:
    """One DICOM file, from a glance at its header.

    Attributes:
        path: the file.
        sop_class, instance: SOP Class and SOP Instance UID.
        series, study, frame: Series Instance UID, Study Instance UID, Frame of Reference UID; "" where absent.
        modality: "no modality" where absent.
        description: Series Description.
        body_part: Body Part Examined.
        image_type: Image Type, as text.
        patient, patient_name: Patient ID and name.
        not_image: what it is if it is no image, such as "segmentation".
        planes: where its frames lie; none where it does not say so, or is no grey-value image.
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
    not_image: str | None
    planes: tuple[Plane, ...]


@dataclass(frozen=True)
class LeftOut:
    """A file that is no DICOM object that could be read.

    Attributes:
        path: the file.
        sentence: what it is instead.
        damaged: whether it starts like DICOM; then it may be a slice that is missed.
        directory: whether it is a DICOMDIR.
    """

    path: Path
    sentence: str
    damaged: bool = False
    directory: bool = False


def look_at(paths: Iterable[Path]) -> tuple[list[DicomObject], list[LeftOut]]:
    """The DICOM objects among ``paths``, and the files that are none."""
    objects: list[DicomObject] = []
    left_out: list[LeftOut] = []
    for path in map(Path, paths):
        found = glance(path)
        if isinstance(found, DicomObject):
            objects.append(found)
        else:
            left_out.append(found)
    if left_out:
        _LOG.info("%d of %d files are no DICOM objects and were left out", len(left_out), len(left_out) + len(objects))
    return objects, left_out


def glance(path: Path) -> DicomObject | LeftOut:
    """What one file is."""
    if not is_dicom(path):
        return LeftOut(path, f"{path}: not a DICOM file.")
    try:
        return _glance(path)
    except VolumeError as error:
        return LeftOut(path, str(error), damaged=True)


def files_of_directory(path: Path) -> list[Path]:
    """The files that a DICOMDIR lists (PS3.3 F.3) and that are there, below its own folder.

    Raises:
        VolumeError: it cannot be read, or none of its files is there.
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
            f"{path}: a DICOMDIR, whose {len(listed)} listed file(s) are not there; send the files themselves."
        )
    return found


def is_directory(path: Path) -> bool:
    """Whether a file is a DICOMDIR."""
    found = glance(path)
    return isinstance(found, LeftOut) and found.directory


def _glance(path: Path) -> DicomObject | LeftOut:
    header = read_dicom(path, pixels=False, tags=_TAGS)

    def said(keyword: str) -> str:
        return text(header, keyword, path)

    sop_class = said("SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID", path)
    if sop_class == _MEDIA_DIRECTORY:
        return LeftOut(path, f"{path}: a DICOMDIR, not an image.", directory=True)
    uid, modality = said("SeriesInstanceUID"), said("Modality")
    image = value(header, "Rows", path) is not None
    if not sop_class or not (uid or image):
        raise VolumeError(f"{path}: the DICOM file lacks a SOP Class UID or Series Instance UID.")
    not_image = _NOT_IMAGE_CLASSES.get(sop_class) or _NOT_IMAGES.get(modality)
    if not_image is None and not image:
        not_image = f"{UID(sop_class).name} without an image"
    planes: tuple[Plane, ...] = ()
    if not_image is None:
        try:
            planes = tuple(one.plane for one in slices_of(path, header))
        except VolumeError:
            planes = ()  # whoever wants the image is told what is wrong with it
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
        not_image=not_image,
        planes=planes,
    )
