"""A segmentation as a DICOM Segmentation object (SEG, PS3.3 A.51) on the source series' own grid.

BINARY, the form every SEG reader knows, has one frame per slice and segment that has content, each referring to the
source instance it was drawn on. FRACTIONAL holds probabilities in the same frames, LABELMAP all segments in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from semiseg.errors import SemisegError, VolumeError
from semiseg.outputs.dicom_common import (
    LONG_STRING,
    LONG_TEXT,
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
from semiseg.outputs.formats import OVERLAP_MESSAGE, SegmentationType
from semiseg.outputs.report import NOTICE
from semiseg.outputs.seg_sources import SourceImages, slice_thickness
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.segmentation import PROBABILITY_LEVELS, ConceptCode, Segment, Segmentation


def segmentation_to_seg(
    segmentation: Segmentation,
    series: DicomSeries,
    *,
    algorithm: Algorithm,
    remarks: Sequence[str] = (),
    segmentation_type: SegmentationType = "binary",
) -> pydicom.Dataset:
    """Make a SEG of ``segmentation``, which lies on the grid of ``series``.

    Segment k of the SEG is the k-th of the segmentation, 1-based; overlapping segments stay overlapping. A segmentation
    without a single voxel is an answer too: it becomes a SEG whose frames are all empty. Patient and study are the
    source's; Modality is SEG; Series Description ends in RESEARCH USE ONLY. Of a series that was corrected each source
    image gets the mask where it lies itself. Image Comments hold the ``remarks``.

    As a ``labelmap`` the pixels are segment numbers (Label Map Segmentation Storage, DICOM 2024d), which is smaller and
    known to few readers yet; as ``fractional`` they are the network's probabilities, in 255ths (PS3.3 C.8.20.2.3).

    Raises:
        VolumeError: the grids differ, regions that overlap are to be a label map, there are no probabilities to write,
            or the source lacks what a SEG must refer to (UIDs, frame of reference).
        SemisegError: the source's attributes cannot be repeated in a valid SEG.
    """
    require_same_grid(segmentation, series, "SEG")
    if segmentation_type == "labelmap" and not segmentation.exclusive:
        raise VolumeError(OVERLAP_MESSAGE)
    sources = SourceImages.from_series(series)
    frames = _frames(series.on_slices(_pixels(segmentation, segmentation_type)), sources.order)
    identity = content_hash(series, algorithm, segmentation.segments) + (
        "" if segmentation_type == "binary" else f" {segmentation_type}"
    )
    try:
        seg: pydicom.Dataset = hd.seg.Segmentation(
            source_images=sources.images,
            pixel_array=frames,
            segmentation_type=segmentation_type.upper(),
            fractional_type="PROBABILITY",
            max_fractional_value=PROBABILITY_LEVELS,
            segment_descriptions=_descriptions(segmentation.segments, algorithm, identity),
            series_instance_uid=derive_uid(identity, "series"),
            series_number=SERIES_NUMBERS["SEG"],
            sop_instance_uid=derive_uid(identity, "instance"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm.name[:LONG_STRING],
            software_versions=software_versions(algorithm),
            device_serial_number=algorithm.model_sha256[:LONG_STRING],
            content_label="SEGMENTATION",
            content_description=f"{algorithm.name} {algorithm.version}"[:LONG_STRING],
            series_description=series_description(algorithm),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
            pixel_measures=_pixel_measures(series),
            omit_empty_frames=_omits_empty_frames(frames, len(segmentation.segments), segmentation_type),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SemisegError(f"Series {series.uid}: no valid SEG can be made for it ({error}).") from error
    _fix_dimension_uid(seg, derive_uid(identity, "dimensions"))
    sources.restore_references(seg)
    copy_patient_and_study(seg, series.instances[0])
    seg.ContentCreatorName = ""  # type 2 (PS3.3 table 10-12), and nobody drew this
    seg.ImageComments = " ".join([f"{NOTICE}.", *remarks])[:LONG_TEXT]
    return seg


def _pixels(segmentation: Segmentation, segmentation_type: SegmentationType) -> NDArray[Any]:
    """Segment numbers (X, Y, Z), masks (K, X, Y, Z), or probabilities float32 (K, X, Y, Z).

    Raises:
        VolumeError: there are no probabilities.
    """
    if segmentation_type == "fractional":
        if segmentation.probabilities is None:
            raise VolumeError("The segmentation was made without probabilities, and a fractional SEG is made of them.")
        shares: NDArray[np.float32] = segmentation.probabilities.astype(np.float32)
        shares /= PROBABILITY_LEVELS
        return shares
    if not segmentation.exclusive:
        return np.asarray(segmentation.array != 0).astype(np.uint8)
    numbers = np.zeros(256, dtype=np.uint8)
    for number, segment in enumerate(segmentation.segments, start=1):
        numbers[segment.label] = number
    return numbers[segmentation.array.astype(np.uint8)]


def _frames(pixels: NDArray[Any], order: Sequence[int | None]) -> NDArray[Any]:
    """Pixels as highdicom wants them, rows before columns: (N, Y, X) of (X, Y, Z), or (N, Y, X, K) of (K, X, Y, Z).

    Frame n shows slice ``order[n]``, or nothing.
    """
    slices = pixels.T
    frames = np.zeros((len(order), *slices.shape[1:]), dtype=pixels.dtype)
    for frame, z in enumerate(order):
        if z is not None:
            frames[frame] = slices[z]
    return frames


def _omits_empty_frames(frames: NDArray[Any], segments: int, segmentation_type: SegmentationType) -> bool:
    """Whether frames without content are left out.

    highdicom cannot omit every frame, and says so in the log when asked to. Frames of single bits that fill no
    whole bytes are kept where cornerstone3D unpacks all of them, and not those with content alone.
    """
    if not frames.any():
        return False
    pixels = frames.shape[1] * frames.shape[2]
    if segmentation_type != "binary" or pixels % 8 == 0:
        return True
    numbers = range(1, segments + 1)
    shown = frames if frames.ndim == 4 else np.stack([frames == number for number in numbers], axis=-1)
    filled = int(np.count_nonzero(shown.any(axis=(1, 2))))
    return _unpacked_by_cornerstone(pixels, filled) or not _unpacked_by_cornerstone(pixels, len(frames) * segments)


def _unpacked_by_cornerstone(pixels: int, frames: int) -> bool:
    """Whether cornerstone3D 5.14 unpacks frames of single bits that follow each other within a byte (PS3.5 8.1.1).

    It refuses a length that needs a byte of padding, and takes frames for such of whole bytes where these would be as
    long.
    """
    length, of_whole_bytes = -(-pixels * frames // 8), frames * -(-pixels // 8)
    return length % 2 == 0 and (frames == 1 or length != of_whole_bytes)


def _descriptions(segments: Sequence[Segment], algorithm: Algorithm, identity: str) -> list[hd.seg.SegmentDescription]:
    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm.name[:LONG_STRING],
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version[:LONG_STRING],
        source=MANUFACTURER,
        parameters={"model_sha256": algorithm.model_sha256},
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name,
            segmented_property_category=to_coded_concept(segment.category),
            segmented_property_type=to_coded_concept(segment.coded_type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
            tracking_uid=derive_uid(identity, f"segment {number}"),
            tracking_id=segment.name,
            display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
        )
        for number, segment in enumerate(segments, start=1)
    ]


def to_coded_concept(code: ConceptCode) -> hd.sr.CodedConcept:
    """A code as highdicom has it."""
    return hd.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _pixel_measures(series: DicomSeries) -> hd.PixelMeasuresSequence:
    plane, gap = series.slices[0].plane, series.volume.spacing[2]
    return hd.PixelMeasuresSequence(
        pixel_spacing=(plane.row_spacing, plane.column_spacing),
        slice_thickness=float(slice_thickness(series.slices[0], gap)),
        spacing_between_slices=gap if series.grid is None else None,  # the source's own slices may lie unevenly
    )


def _fix_dimension_uid(seg: pydicom.Dataset, uid: str) -> None:
    """highdicom draws the Dimension Organization UID at random; two objects with one UID must not differ in it."""
    for item in [*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence]:
        item.DimensionOrganizationUID = uid
