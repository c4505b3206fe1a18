"""Radiotherapy structure sets (RTSTRUCT, PS3.3 A.19): closed contours slightly inside the voxels' edges.

They are meant for planning systems and archives without SEG support. Each contour is in the plane of its image.
"""

from __future__ import annotations

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from semiseg.outputs.contours import mask_contours
from semiseg.outputs.dicom_common import (
    LONG_STRING,
    MANUFACTURER,
    SERIES_NUMBERS,
    Algorithm,
    content_hash,
    copy_patient_and_study,
    derive_uid,
    require_same_grid,
    series_description,
    software_versions,
)
from semiseg.outputs.report import NOTICE
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.dicom_slices import Slice
from semiseg.volumes.segmentation import Segment, Segmentation

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, but PS3.3 C.8.8.5 still requires it for a referenced study
_SHORT_STRING = 16  # characters (PS3.5 table 6.2-1)


def segmentation_to_rtstruct(
    segmentation: Segmentation, series: DicomSeries, *, algorithm: Algorithm
) -> pydicom.Dataset:
    """Create a structure set of ``segmentation``, which is on the grid of ``series``.

    It contains one structure for each segment, including empty ones. Structures are AUTOMATIC and UNAPPROVED.

    Raises:
        VolumeError: The grids differ, or the source lacks UIDs that a structure set must refer to.
    """
    require_same_grid(segmentation, series, "structure set")
    first = series.instances[0]
    identity = content_hash(series, algorithm, segmentation.segments)
    struct = pydicom.Dataset()
    struct.file_meta = FileMetaDataset()
    # Explicit VR limits the points of a contour to 64 kB (PS3.5 7.1.2), which is too little for a large organ.
    struct.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    struct.SpecificCharacterSet = "ISO_IR 192"
    struct.SOPClassUID, struct.SOPInstanceUID = RTStructureSetStorage, derive_uid(identity, "structure set")
    struct.StudyInstanceUID, struct.SeriesInstanceUID = first.StudyInstanceUID, derive_uid(identity, "structures")
    copy_patient_and_study(struct, first)
    struct.Modality, struct.SeriesNumber, struct.InstanceNumber = "RTSTRUCT", SERIES_NUMBERS["RTSTRUCT"], 1
    struct.SeriesDescription = series_description(algorithm)
    struct.OperatorsName = ""
    struct.Manufacturer, struct.ManufacturerModelName = MANUFACTURER, algorithm.name[:LONG_STRING]
    struct.SoftwareVersions = list(software_versions(algorithm))
    struct.StructureSetLabel = "semiseg"
    struct.StructureSetName = algorithm.name[:LONG_STRING]
    struct.StructureSetDescription = f"{NOTICE}. Model {algorithm.model_sha256}."
    struct.StructureSetDate = struct.StructureSetTime = ""
    struct.FrameOfReferenceUID = first.FrameOfReferenceUID
    struct.PositionReferenceIndicator = str(first.get("PositionReferenceIndicator") or "")
    struct.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
    struct.StructureSetROISequence, struct.ROIContourSequence, struct.RTROIObservationsSequence = [], [], []
    on_slices = series.on_slices(np.stack([segmentation.mask(k) for k in range(len(segmentation.segments))]))
    for number, (segment, mask) in enumerate(zip(segmentation.segments, on_slices, strict=True), start=1):
        struct.StructureSetROISequence.append(_structure(number, segment, algorithm, first.FrameOfReferenceUID))
        struct.ROIContourSequence.append(_contours(number, segment, mask, series))
        struct.RTROIObservationsSequence.append(_observation(number, segment))
    struct.ApprovalStatus = "UNAPPROVED"
    return struct


def _frame_of_reference(series: DicomSeries) -> pydicom.Dataset:
    """Return the item with the images that contours refer to (PS3.3 C.8.8.5)."""
    first = series.instances[0]
    one, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    one.SeriesInstanceUID = first.SeriesInstanceUID
    one.ContourImageSequence = [_image(part) for part in series.slices]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [one]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    return frame


def _image(part: Slice) -> pydicom.Dataset:
    image = pydicom.Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = part.header.SOPClassUID, part.header.SOPInstanceUID
    if part.frame is not None:
        image.ReferencedFrameNumber = part.frame + 1
    return image


def _structure(number: int, segment: Segment, algorithm: Algorithm, frame: str) -> pydicom.Dataset:
    structure = pydicom.Dataset()
    structure.ROINumber, structure.ROIName = number, segment.name
    structure.ReferencedFrameOfReferenceUID = frame
    structure.ROIGenerationAlgorithm = "AUTOMATIC"
    structure.ROIGenerationDescription = f"{algorithm.name} {algorithm.version}"[:LONG_STRING]
    return structure


def _contours(number: int, segment: Segment, mask: NDArray[np.bool_], series: DicomSeries) -> pydicom.Dataset:
    """Return the contours of a mask (columns, rows, N) on the slices (PS3.3 C.8.8.6)."""
    drawn = pydicom.Dataset()
    drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, list(segment.colour)
    contours = []
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        part = series.slices[int(z)]
        plane = part.plane
        along_row = np.array(plane.along_row) * plane.column_spacing
        along_column = np.array(plane.along_column) * plane.row_spacing
        for polygon in mask_contours(mask[:, :, z]):
            points = np.array(plane.position) + polygon[:, :1] * along_row + polygon[:, 1:] * along_column
            contour = pydicom.Dataset()
            contour.ContourImageSequence = [_image(part)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
            contours.append(contour)
    if contours:  # absent, not empty, for a structure that was not found
        drawn.ContourSequence = contours
    return drawn


def _observation(number: int, segment: Segment) -> pydicom.Dataset:
    """Return the coded observation of a structure (PS3.3 C.8.8.8)."""
    observation, code = pydicom.Dataset(), pydicom.Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.ROIObservationLabel = segment.name[:_SHORT_STRING]
    kind = segment.coded_type
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = kind.value, kind.scheme, kind.meaning
    observation.RTROIIdentificationCodeSequence = [code]
    observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
    return observation
