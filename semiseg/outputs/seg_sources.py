"""Preparation of the source images of a SEG for highdicom, and correction of the references in the finished object.

highdicom accepts a series of single-frame images or one multi-frame object. A series of several multi-frame objects
(such as a concatenation) is passed as single-frame stand-ins with temporary UIDs, which are replaced afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pydicom
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from semiseg.outputs.dicom_common import PATIENT_AND_STUDY, REQUIRED_UIDS, derive_uid
from semiseg.volumes.dicom_geometry import Plane
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.dicom_slices import Slice

_GEOMETRY = ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@dataclass(frozen=True)
class SourceImages:
    """The source images of a SEG.

    Attributes:
        images: Datasets for highdicom, one for each image of the series.
        order: Index of the slice of each frame of the images; None for a frame that is not a slice.
        frames: Slice of each stand-in, by the stand-in's SOP Instance UID; empty unless the series consists of several
            multi-frame objects.
    """

    images: list[pydicom.Dataset]
    order: list[int | None]
    frames: dict[str, Slice] = field(default_factory=dict)

    @classmethod
    def from_series(cls, series: DicomSeries) -> SourceImages:
        """Prepare the source images of a series."""
        gap = series.volume.spacing[2]
        first = series.slices[0]
        if first.frame is None:
            return cls([_repeated(header, gap) for header in series.instances], list(range(len(series.slices))))
        if len({one.path for one in series.slices}) > 1:
            return cls._several(series, gap)
        source = _repeated(first.header, gap)
        count = int(first.header.get("NumberOfFrames") or 1)
        order: list[int | None] = [None] * count
        for z, one in enumerate(series.slices):
            order[one.frame or 0] = z
        # highdicom expects these groups in the shared functional groups; in the source they may be elsewhere.
        source.NumberOfFrames = count
        source.SharedFunctionalGroupsSequence = [_shared_groups(first, gap)]
        source.PerFrameFunctionalGroupsSequence = [_position(series.slices[z or 0].plane) for z in order]
        return cls([source], order)

    @classmethod
    def _several(cls, series: DicomSeries, gap: float) -> SourceImages:
        frames: dict[str, Slice] = {}
        images = []
        for z, one in enumerate(series.slices):
            image = _repeated(one.header, gap)
            plane = one.plane
            image.SOPClassUID = CTImageStorage  # highdicom only checks whether the class is multi-frame
            image.SOPInstanceUID = derive_uid(series.uid, f"stand-in {z}")
            image.ImagePositionPatient = [format_number_as_ds(v) for v in plane.position]
            image.ImageOrientationPatient = [format_number_as_ds(v) for v in (*plane.along_row, *plane.along_column)]
            image.PixelSpacing = [format_number_as_ds(v) for v in (plane.row_spacing, plane.column_spacing)]
            image.SliceThickness = slice_thickness(one, gap)
            frames[image.SOPInstanceUID] = one
            images.append(image)
        return cls(images, list(range(len(images))), frames)

    def restore_references(self, seg: pydicom.Dataset) -> None:
        """Replace the references to stand-ins by references to the objects of the series and their frames."""
        if not self.frames:
            return
        for group in seg.PerFrameFunctionalGroupsSequence:
            for derivation in group.get("DerivationImageSequence", ()):
                for item in derivation.SourceImageSequence:
                    one = self.frames[item.ReferencedSOPInstanceUID]
                    _refer(item, one)
                    item.ReferencedFrameNumber = (one.frame or 0) + 1  # from 1 (PS3.3 table 10-3)
        for series in seg.ReferencedSeriesSequence:
            objects: dict[str, pydicom.Dataset] = {}
            for item in series.ReferencedInstanceSequence:
                _refer(item, self.frames[item.ReferencedSOPInstanceUID])
                objects.setdefault(item.ReferencedSOPInstanceUID, item)
            series.ReferencedInstanceSequence = list(objects.values())


def source_images(series: DicomSeries) -> list[pydicom.Dataset]:
    """Return the objects of a series, each once, as evidence of another object."""
    objects = {str(header.get("SOPInstanceUID")): header for header in series.instances}
    return [_repeated(header, series.volume.spacing[2]) for header in objects.values()]


def slice_thickness(one: Slice, gap: float) -> str:
    """Return the slice thickness in mm as a decimal string.

    It is the scanner's value, which may differ from the distance of the slices; the distance is used if the source has
    no slice thickness.
    """
    return one.value("SliceThickness", "PixelMeasuresSequence", "SliceThickness") or format_number_as_ds(gap)


def _refer(item: pydicom.Dataset, one: Slice) -> None:
    item.ReferencedSOPClassUID = one.header.SOPClassUID
    item.ReferencedSOPInstanceUID = one.header.SOPInstanceUID


def _shared_groups(first: Slice, gap: float) -> pydicom.Dataset:
    """Return Pixel Measures and Plane Orientation of all frames (PS3.3 C.7.6.16.2.1, C.7.6.16.2.4)."""
    plane = first.plane
    shared, measures, orientation = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.SliceThickness = slice_thickness(first, gap)
    measures.PixelSpacing = [format_number_as_ds(v) for v in (plane.row_spacing, plane.column_spacing)]
    orientation.ImageOrientationPatient = [format_number_as_ds(v) for v in (*plane.along_row, *plane.along_column)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    return shared


def _position(plane: Plane) -> pydicom.Dataset:
    """Return Plane Position of a frame (PS3.3 C.7.6.16.2.3)."""
    own, position = pydicom.Dataset(), pydicom.Dataset()
    position.ImagePositionPatient = [format_number_as_ds(v) for v in plane.position]
    own.PlanePositionSequence = [position]
    return own


def _repeated(instance: pydicom.Dataset, gap: float) -> pydicom.Dataset:
    """Return the attributes of an image that results copy; attributes that may be empty are always present."""
    source = pydicom.Dataset()
    for keyword in REQUIRED_UIDS:
        setattr(source, keyword, instance.get(keyword))
    for keyword in _GEOMETRY:
        if keyword in instance:  # multi-frame objects have it in functional groups
            source.add(instance[keyword])
    for keyword in PATIENT_AND_STUDY:
        # Left empty, because highdicom quotes invalid values in warnings, which must not contain patient data.
        setattr(source, keyword, "")
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if instance.get(keyword):
            source.add(instance[keyword])
    source.PositionReferenceIndicator = str(instance.get("PositionReferenceIndicator") or "")
    source.SliceThickness = instance.get("SliceThickness") or format_number_as_ds(gap)
    source.Modality = instance.get("Modality") or "OT"
    return source
