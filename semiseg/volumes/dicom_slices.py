"""The slices of DICOM image objects: a single-frame image is one, an enhanced multi-frame object holds many.

What a slice says of itself stands in the attributes of its object, or in the functional groups of its frame (PS3.3
C.7.6.16): its own (Per-Frame) before those of all (Shared).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import PARSING_ERRORS, numbers, one_line, read_dicom, text
from semiseg.volumes.dicom_geometry import Plane, plane_of

MAX_SLICE_PIXELS = 2**26
"""8192 x 8192: beyond any CT or MR slice."""
MAX_FRAMES = 2**16

_TELLING = (
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime", "Echo Time"),
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex", "temporal position"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue", "b-value"),
    ("InversionTime", "MRModifierSequence", "InversionTimes", "Inversion Time"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "cardiac phase"),
    ("ImageType", "MRImageFrameTypeSequence", "FrameType", "Image Type"),
    ("ImageType", "CTImageFrameTypeSequence", "FrameType", "Image Type"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber", "Acquisition Number"),
    ("AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime", "acquisition time"),
)
"""What images of one place differ in: attribute of a single frame; functional group, attribute in it; words."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One image plane.

    Attributes:
        path: the file of its object.
        header: the object's attributes without pixel data.
        frame: which frame of a multi-frame object, from 0; None for a single-frame image.
        plane: where it lies.
        slope, intercept: Rescale Slope and Intercept (PS3.3 C.11.1, C.7.6.16.2.9).
    """

    path: Path
    header: pydicom.Dataset
    frame: int | None
    plane: Plane
    slope: float
    intercept: float

    def value(self, keyword: str, group: str, inner: str) -> str:
        """What an attribute of its frame says, as text; "" where it is silent."""
        if self.frame is None:
            return text(self.header, keyword, self.path)
        return text(_group(self.header, group, self.frame, self.path), inner, self.path)


def slices_of(path: Path, header: pydicom.Dataset) -> list[Slice]:
    """The slices of one image object.

    Raises:
        VolumeError: colour, several frames without a place each, attributes that are missing or absurd.
    """
    _require_grey(path, header)
    frames = numbers(header, "NumberOfFrames", path)
    enhanced = "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header
    if not enhanced:
        if frames is not None and frames[0] != 1:
            raise VolumeError(
                f"{path}: a multi-frame object of {frames[0]:.0f} frames that does not say where each of them lies (it "
                "has no functional groups), so they make no volume."
            )
        return [_slice(path, header, None)]
    count = 1 if frames is None else int(frames[0])
    if not 1 <= count <= MAX_FRAMES or (frames is not None and frames[0] != count):
        raise VolumeError(f"{path}: a multi-frame object of {frames[0] if frames else 0:g} frames is damaged.")
    own = _items(header, "PerFrameFunctionalGroupsSequence", path)
    if len(own) != count:
        raise VolumeError(f"{path}: {count} frames, but functional groups for {len(own)}; the object is damaged.")
    return [_slice(path, header, frame) for frame in range(count)]


def pixels_of(slices: Sequence[Slice]) -> list[NDArray[Any]]:
    """The decoded values (rows, columns) of slices of one object, as stored, before rescaling.

    Raises:
        VolumeError: the pixel data cannot be decoded, or are no grey values of the promised size.
    """
    path, first = slices[0].path, slices[0]
    dataset = read_dicom(path, pixels=True)
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID", path))
    try:
        pixels = np.asarray(dataset.pixel_array)
        if "ModalityLUTSequence" in dataset:
            pixels = np.asarray(apply_modality_lut(pixels, dataset))
    except PARSING_ERRORS as error:
        compressed = syntax.is_transfer_syntax and syntax.is_compressed
        what = f"pixel data compressed as {syntax.name}" if compressed else "pixel data"
        raise VolumeError(f"{path}: the {what} cannot be decoded ({one_line(error)}{_missing(error)}).") from error
    size = (first.plane.rows, first.plane.columns)
    frames = pixels if pixels.ndim == 3 else pixels[None]
    last = max(one.frame or 0 for one in slices)
    if frames.shape[1:] != size or last >= len(frames) or pixels.dtype.kind not in "iu":
        raise VolumeError(f"{path}: pixel data of shape {pixels.shape} ({pixels.dtype}) are no grey-value slices.")
    return [frames[one.frame or 0] for one in slices]


def _missing(error: Exception) -> str:
    """The packages of which pydicom needs one to decode the pixels, where none is installed; else ""."""
    lines = [line.strip().partition(" - requires ") for line in str(error).splitlines()]
    names = [{"gdcm": "python-gdcm"}.get(plugin, plugin) for plugin, mark, _ in lines if mark]
    return f"; install one of {', '.join(names)}" if names else ""


def differing(slices: Sequence[Slice]) -> str:
    """In what slices of one place differ, in words; "" where nothing is found."""
    found: dict[str, None] = {}
    for keyword, group, inner, words in _TELLING:
        values = {one.value(keyword, group, inner) for one in slices}
        if len(values) > 1:
            found[words] = None
    return ", ".join(found)


def _require_grey(path: Path, header: pydicom.Dataset) -> None:
    samples = numbers(header, "SamplesPerPixel", path)
    photometric = text(header, "PhotometricInterpretation", path)
    if (samples is not None and samples[0] != 1) or not photometric.startswith("MONOCHROME"):
        raise VolumeError(f"{path}: a grey-value image is needed, but this one is {photometric or 'of unknown kind'}.")
    if photometric == "MONOCHROME1" and text(header, "Modality", path) != "CT":
        # In a CT the rescaled values are HU whatever their display; elsewhere nothing says what inverted ones mean.
        raise VolumeError(
            f"{path}: the image is stored for inverted display (MONOCHROME1), so its values cannot be told from their "
            "opposite; send the original series."
        )


def _slice(path: Path, header: pydicom.Dataset, frame: int | None) -> Slice:
    place = _where(path, header, frame)
    missing = [keyword for keyword, values in place.items() if values is None]
    if missing:
        raise VolumeError(f"{path}: the image lacks {' and '.join(missing)}, so its place in the patient is unknown.")
    position, orientation, spacing, height, width = (values for values in place.values() if values is not None)
    rows, columns = int(height[0]), int(width[0])
    if rows * columns > MAX_SLICE_PIXELS:
        raise VolumeError(f"{path}: a slice of {rows} x {columns} pixels is beyond any scan; the header is damaged.")
    try:
        plane = plane_of(position, orientation, spacing, (rows, columns))
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    return Slice(path, header, frame, plane, *_rescale(path, header, frame))


def _where(path: Path, header: pydicom.Dataset, frame: int | None) -> dict[str, list[float] | None]:
    """The five attributes that place a slice, by keyword."""
    groups = {
        "ImagePositionPatient": "PlanePositionSequence",
        "ImageOrientationPatient": "PlaneOrientationSequence",
        "PixelSpacing": "PixelMeasuresSequence",
    }
    found: dict[str, list[float] | None] = {}
    for keyword, group in groups.items():
        source = header if frame is None else _group(header, group, frame, path)
        found[keyword] = numbers(source, keyword, path)
    return found | {keyword: numbers(header, keyword, path) for keyword in ("Rows", "Columns")}


def _rescale(path: Path, header: pydicom.Dataset, frame: int | None) -> tuple[float, float]:
    """Rescale Slope and Intercept, (1, 0) where absent."""
    source = header if frame is None else _group(header, "PixelValueTransformationSequence", frame, path)
    slope = numbers(source, "RescaleSlope", path)
    intercept = numbers(source, "RescaleIntercept", path)
    pair = (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0])
    if not np.isfinite(pair).all() or pair[0] == 0 or max(map(abs, pair)) > 2**30:
        raise VolumeError(f"{path}: Rescale Slope {pair[0]} and Intercept {pair[1]} make no grey values.")
    return pair


def _group(header: pydicom.Dataset, keyword: str, frame: int, path: Path) -> pydicom.Dataset:
    """A functional group of a frame; an empty one where there is none."""
    own = _items(header, "PerFrameFunctionalGroupsSequence", path)
    shared = _items(header, "SharedFunctionalGroupsSequence", path)
    for item in (*own[frame : frame + 1], *shared[:1]):
        found = _items(item, keyword, path)
        if found:
            return found[0]
    return pydicom.Dataset()


def _items(dataset: pydicom.Dataset, keyword: str, path: Path) -> list[pydicom.Dataset]:
    """The items of a sequence, none where it is absent."""
    try:
        found = dataset.get(keyword)
        return [] if found is None else list(found)
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} is damaged ({one_line(error)}).") from error
