"""The slices of DICOM image objects: a single-frame image is one, an enhanced multi-frame object holds many.

What a slice says of itself stands in the attributes of its object, or in the functional groups of its frame (PS3.3
C.7.6.16): its own (Per-Frame) before those of all (Shared). Where there is no such group, the object's own attributes
count, as in objects of converters that moved only some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import PARSING_ERRORS, DicomHeader, decimals, items, numbers, text, value
from semiseg.volumes.dicom_geometry import Plane, make_plane

MAX_SLICE_PIXELS = 2**26
"""8192 x 8192: beyond any CT or MR slice."""
MAX_FRAMES = 2**16
_TRANSFORMATION = "PixelValueTransformationSequence"

MAX_MR_FIELD_MM = 700.0
"""No magnet is wider. An MR image that is larger both ways holds several slices side by side."""

_SIEMENS_MOSAIC = (0x0019, 0x0A, "SIEMENS MR HEADER")  # Number Of Images In Mosaic
_UIH_GRID = (0x0065, 0x50, "Image Private Header")  # the number of slices in the image


@dataclass(frozen=True, eq=False)
class Slice:
    """One image plane.

    Attributes:
        source: the object that it belongs to.
        frame: which frame of a multi-frame object, from 0; None for a single-frame image.
        plane: where it lies.
        slope, intercept: Rescale Slope and Intercept (PS3.3 C.11.1, C.7.6.16.2.9).
    """

    source: DicomHeader
    frame: int | None
    plane: Plane
    slope: float
    intercept: float

    @property
    def path(self) -> Path:
        """The file of its object."""
        return self.source.path

    @property
    def header(self) -> pydicom.Dataset:
        """The object's attributes without pixel data."""
        return self.source.dataset

    @property
    def rescales_to_integers(self) -> bool:
        """Whether integers stay integers when they are rescaled."""
        return self.slope == 1 and self.intercept == int(self.intercept)

    def value(self, keyword: str, group: str, inner: str) -> str:
        """What an attribute of its frame says, as text; "" where it is silent."""
        if self.frame is None:
            return text(self.header, keyword, self.path)
        for item in _groups(self.source, group, self.frame):
            if found := text(item, inner, self.path):
                return found
        return text(self.header, keyword, self.path)


def read_slices(source: DicomHeader) -> list[Slice]:
    """The slices of one image object.

    Raises:
        VolumeError: colour, several frames without a place each, several slices in one image, attributes that are
            missing or absurd.
    """
    path, header = source.path, source.dataset
    _require_grey(path, header)
    frames = numbers(header, "NumberOfFrames", path)
    enhanced = "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header
    if not enhanced:
        if frames is not None and frames[0] != 1:
            raise VolumeError(
                f"{path}: a multi-frame object of {frames[0]:.0f} frames that does not say where each of them lies (it "
                "has no functional groups), so they make no volume."
            )
        _refuse_mosaic(path, header)
        _refuse_reversed_rows(path, header)
        found = [_slice(source, None)]
    else:
        count = 1 if frames is None else int(frames[0])
        if not 1 <= count <= MAX_FRAMES or (frames is not None and frames[0] != count):
            raise VolumeError(f"{path}: a multi-frame object of {frames[0] if frames else 0:g} frames is damaged.")
        own = items(header, "PerFrameFunctionalGroupsSequence", path)
        if len(own) != count and (own or count > 1):
            raise VolumeError(f"{path}: {count} frames, but functional groups for {len(own)}; the object is damaged.")
        found = [_slice(source, frame) for frame in range(count)]
        silent = sum(_rescale_of(source, frame) is None for frame in range(count))
        if 0 < silent < count:
            raise VolumeError(
                f"{path}: {silent} of {count} frames do not say how their values are rescaled and the others do "
                "(PS3.3 C.7.6.16.1.1: a functional group stands in every frame, or in the shared ones)."
            )
    if text(header, "Modality", path) == "MR":
        _refuse_giant(path, found[0].plane)
    return found


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


def _refuse_mosaic(path: Path, header: pydicom.Dataset) -> None:
    """Refuse an image of several slices side by side. Enhanced objects may keep the word and have frames instead."""
    said = "MOSAIC" in text(header, "ImageType", path).upper()
    for group, element, creator in (_SIEMENS_MOSAIC, _UIH_GRID):
        try:
            said |= int(header.private_block(group, creator)[element].value or 0) > 1
        except PARSING_ERRORS:  # KeyError: it has no such element
            continue
    if said:
        raise VolumeError(
            f"{path}: a mosaic: the image holds several slices side by side, and no standard attribute says where each "
            "of them lies. Convert it (for example with dcm2niix) and send the NIfTI file."
        )


def _refuse_reversed_rows(path: Path, header: pydicom.Dataset) -> None:
    """Refuse images of a GE research sequence that may be stored with their rows in reverse, which no header says."""
    try:
        block = header.private_block(0x0019, "GEMS_ACQU_01")
        reversed_rows = "epi_pepolar" in str(block[0x9C].value) and int(block[0xB3].value or 0) != 0
    except PARSING_ERRORS:  # KeyError: it has no such element
        return
    if reversed_rows:
        raise VolumeError(
            f"{path}: an image of the sequence epi_pepolar with reversed phase polarity, which stores rows in reverse "
            "without saying so; convert it (for example with dcm2niix) and send the NIfTI file."
        )


def _refuse_giant(path: Path, plane: Plane) -> None:
    sides = plane.rows * plane.row_spacing, plane.columns * plane.column_spacing
    if min(sides) > MAX_MR_FIELD_MM:
        raise VolumeError(
            f"{path}: an MR image of {sides[0]:.0f} x {sides[1]:.0f} mm is wider than any magnet: it holds several "
            "slices side by side (a mosaic), or its Pixel Spacing is wrong."
        )


def _slice(source: DicomHeader, frame: int | None) -> Slice:
    path, header = source.path, source.dataset
    place = {
        keyword: _first(source, frame, group, keyword)
        for keyword, group in (
            ("ImagePositionPatient", "PlanePositionSequence"),
            ("ImageOrientationPatient", "PlaneOrientationSequence"),
            ("PixelSpacing", "PixelMeasuresSequence"),
        )
    }
    size = {keyword: numbers(header, keyword, path) for keyword in ("Rows", "Columns")}
    missing = [keyword for keyword, values in {**place, **size}.items() if values is None]
    if missing:
        raise VolumeError(f"{path}: the image lacks {' and '.join(missing)}, so its place in the patient is unknown.")
    where = place["ImagePositionPatient"]
    position, orientation, spacing = (
        numbers(found, keyword, path) or [] for keyword, found in place.items() if found is not None
    )
    rows, columns = (int(values[0]) for values in size.values() if values is not None)
    if rows * columns > MAX_SLICE_PIXELS:
        raise VolumeError(f"{path}: a slice of {rows} x {columns} pixels is beyond any scan; the header is damaged.")
    try:
        plane = make_plane(
            position, orientation, spacing, (rows, columns), decimals(where, "ImagePositionPatient", path)
        )
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    return Slice(source, frame, plane, *_rescale(source, frame))


def _rescale(source: DicomHeader, frame: int | None) -> tuple[float, float]:
    """Rescale Slope and Intercept, (1, 0) where absent; both from one place."""
    path = source.path
    said = _rescale_of(source, frame) or pydicom.Dataset()
    slope, intercept = numbers(said, "RescaleSlope", path), numbers(said, "RescaleIntercept", path)
    pair = (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0])
    if not np.isfinite(pair).all() or pair[0] == 0 or max(map(abs, pair)) > 2**30:
        raise VolumeError(f"{path}: Rescale Slope {pair[0]} and Intercept {pair[1]} make no grey values.")
    return pair


def _rescale_of(source: DicomHeader, frame: int | None) -> pydicom.Dataset | None:
    """What says how the values of a frame are rescaled; None where nothing does."""
    places = (_first(source, frame, _TRANSFORMATION, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return next((place for place in places if place is not None), None)


def _first(source: DicomHeader, frame: int | None, group: str, keyword: str) -> pydicom.Dataset | None:
    """Where an attribute of a frame stands: in the frame's own functional group, in that of all, or in the object.

    The last is for objects that leave out the group. A position that stands there is that of one frame only.
    """
    candidates = [] if frame is None else _groups(source, group, frame)
    alone = frame is None or len(items(source.dataset, "PerFrameFunctionalGroupsSequence", source.path)) < 2
    if alone or keyword != "ImagePositionPatient":
        candidates.append(source.dataset)
    return next((one for one in candidates if value(one, keyword, source.path) is not None), None)


def _groups(source: DicomHeader, keyword: str, frame: int) -> list[pydicom.Dataset]:
    """The items of a functional group that hold for a frame: its own, then those of all frames."""
    own = items(source.dataset, "PerFrameFunctionalGroupsSequence", source.path)
    shared = items(source.dataset, "SharedFunctionalGroupsSequence", source.path)
    return [found for item in (*own[frame : frame + 1], *shared[:1]) for found in items(item, keyword, source.path)[:1]]
