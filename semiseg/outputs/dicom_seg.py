"""DICOM Segmentation objects (SEG, PS3.3 A.51) on the grid of the source series.

BINARY, the type that every SEG reader supports, has one frame for each segment and slice with content, which refers to
its source instance. FRACTIONAL contains probabilities in the same frames, LABELMAP contains all segments in one frame
per slice.
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
from semiseg.outputs.formats.dicom import OVERLAP_MESSAGE, SegmentationType
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
    """Create a SEG of ``segmentation``, which is on the grid of ``series``.

    Segment k of the SEG is the k-th of the segmentation, 1-based; overlapping segments remain overlapping. A
    segmentation without any voxel becomes a SEG whose frames are all empty. Patient and study are copied from the
    source; Modality is SEG; Series Description ends in RESEARCH USE ONLY. If the geometry of the series was corrected,
    the mask is resampled onto the planes of the source images. Image Comments contains the ``remarks``.

    With the type ``labelmap`` the pixels are segment numbers (Label Map Segmentation Storage, DICOM 2024d), which is
    smaller, but supported by few readers yet; with ``fractional`` they are the network's probabilities in 255ths (PS3.3
    C.8.20.2.3).

    Raises:
        VolumeError: The grids differ, overlapping regions cannot be a label map, there are no probabilities, or the
            source lacks attributes that a SEG must refer to (UIDs, frame of reference).
        SemisegError: The source's attributes cannot be copied into a valid SEG.
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
    seg.ContentCreatorName = ""  # type 2 (PS3.3 table 10-12); no person drew the segmentation
    seg.ImageComments = " ".join([f"{NOTICE}.", *remarks])[:LONG_TEXT]
    return seg


def _pixels(segmentation: Segmentation, segmentation_type: SegmentationType) -> NDArray[Any]:
    """Return segment numbers (X, Y, Z), masks (K, X, Y, Z), or probabilities float32 (K, X, Y, Z).

    Raises:
        VolumeError: There are no probabilities.
    """
    if segmentation_type == "fractional":
        if segmentation.probabilities is None:
            raise VolumeError("The segmentation has no probabilities, which a fractional SEG consists of.")
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
    """Rearrange pixels for highdicom, rows before columns: (X, Y, Z) to (N, Y, X), or (K, X, Y, Z) to (N, Y, X, K).

    Frame n contains slice ``order[n]``, or is empty if that is None.
    """
    slices = pixels.T
    frames = np.zeros((len(order), *slices.shape[1:]), dtype=pixels.dtype)
    for frame, z in enumerate(order):
        if z is not None:
            frames[frame] = slices[z]
    return frames


def _omits_empty_frames(frames: NDArray[Any], segments: int, segmentation_type: SegmentationType) -> bool:
    """Return True if empty frames are to be omitted.

    highdicom cannot omit all frames, and logs a warning if it is asked to. If frames of single bits do not end at a
    byte boundary, empty frames are kept if cornerstone3D unpacks the complete set of frames, but not the non-empty
    ones.
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
    """Return True if cornerstone3D 5.14 unpacks frames of single bits that are not aligned to bytes (PS3.5 8.1.1).

    It refuses pixel data whose length needs a byte of padding, and if byte-aligned frames would have the same total
    length, it treats the frames as byte-aligned.
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
    """Convert a code into highdicom's type."""
    return hd.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _pixel_measures(series: DicomSeries) -> hd.PixelMeasuresSequence:
    plane, gap = series.slices[0].plane, series.volume.spacing[2]
    return hd.PixelMeasuresSequence(
        pixel_spacing=(plane.row_spacing, plane.column_spacing),
        slice_thickness=float(slice_thickness(series.slices[0], gap)),
        spacing_between_slices=gap if series.grid is None else None,  # the source's own slices may be unevenly spaced
    )


def _fix_dimension_uid(seg: pydicom.Dataset, uid: str) -> None:
    """Replace highdicom's random Dimension Organization UID, so that objects with the same UID are identical."""
    for item in [*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence]:
        item.DimensionOrganizationUID = uid
