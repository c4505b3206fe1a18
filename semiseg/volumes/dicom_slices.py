"""Reads the slices of DICOM image objects: one of a single-frame image, many of an enhanced multi-frame object.

The description of a slice is in the attributes of its object, or in the functional groups of its frame (PS3.3
C.7.6.16), where its own groups (Per-Frame) take precedence over those of all frames (Shared). If there is no such
group, the object's own attributes are used, as in objects from converters that moved only some attributes.
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
"""8192 x 8192 pixels, more than any CT or MR slice has."""
MAX_FRAMES = 2**16
_TRANSFORMATION = "PixelValueTransformationSequence"

MAX_MR_FIELD_MM = 700.0
"""Larger than the bore of any magnet. An MR image larger than this in both directions holds several slices."""

_SIEMENS_MOSAIC = (0x0019, 0x0A, "SIEMENS MR HEADER")  # Number Of Images In Mosaic
_UIH_GRID = (0x0065, 0x50, "Image Private Header")  # the number of slices in the image


@dataclass(frozen=True, eq=False)
class Slice:
    """One image plane.

    Attributes:
        source: Header of the object that the slice belongs to.
        frame: Number of the frame in a multi-frame object, from 0; None for a single-frame image.
        plane: Position, orientation and size.
        slope, intercept: Rescale Slope and Intercept (PS3.3 C.11.1, C.7.6.16.2.9).
    """

    source: DicomHeader
    frame: int | None
    plane: Plane
    slope: float
    intercept: float

    @property
    def path(self) -> Path:
        """Path of the object's file."""
        return self.source.path

    @property
    def header(self) -> pydicom.Dataset:
        """Attributes of the object without the pixel data."""
        return self.source.dataset

    @property
    def rescales_to_integers(self) -> bool:
        """True if integers stay integers when they are rescaled."""
        return self.slope == 1 and self.intercept == int(self.intercept)

    def value(self, keyword: str, group: str, inner: str) -> str:
        """Return an attribute of the slice's frame as text; "" if it is absent."""
        if self.frame is None:
            return text(self.header, keyword, self.path)
        for item in _groups(self.source, group, self.frame):
            if found := text(item, inner, self.path):
                return found
        return text(self.header, keyword, self.path)


def read_slices(source: DicomHeader) -> list[Slice]:
    """Read the slices of one image object.

    Raises:
        VolumeError: The image is in colour, has several frames without a position each or several slices in one frame,
            or has attributes that are missing or implausible.
    """
    path, header = source.path, source.dataset
    _require_grey(path, header)
    frames = numbers(header, "NumberOfFrames", path)
    enhanced = "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header
    if not enhanced:
        if frames is not None and frames[0] != 1:
            raise VolumeError(
                f"{path}: a multi-frame object of {frames[0]:.0f} frames without positions (it has no functional "
                "groups), so they do not make a volume."
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
                f"{path}: {silent} of {count} frames have no rescaling of their values and the others do "
                "(PS3.3 C.7.6.16.1.1: a functional group is either in every frame or in the shared groups)."
            )
    if text(header, "Modality", path) == "MR":
        _refuse_giant(path, found[0].plane)
    return found


def _require_grey(path: Path, header: pydicom.Dataset) -> None:
    samples = numbers(header, "SamplesPerPixel", path)
    photometric = text(header, "PhotometricInterpretation", path)
    if (samples is not None and samples[0] != 1) or not photometric.startswith("MONOCHROME"):
        raise VolumeError(f"{path}: a grey-value image is needed, but this one is {photometric or 'of unknown type'}.")
    if photometric == "MONOCHROME1" and text(header, "Modality", path) != "CT":
        # In CT the rescaled values are HU however they are displayed; in other modalities the meaning is unknown.
        raise VolumeError(
            f"{path}: the image is stored for inverted display (MONOCHROME1), so it is unknown whether its values are "
            "inverted; send the original series."
        )


def _refuse_mosaic(path: Path, header: pydicom.Dataset) -> None:
    """Refuse an image of several slices side by side; enhanced objects may have the word MOSAIC but hold frames."""
    said = "MOSAIC" in text(header, "ImageType", path).upper()
    for group, element, creator in (_SIEMENS_MOSAIC, _UIH_GRID):
        try:
            said |= int(header.private_block(group, creator)[element].value or 0) > 1
        except PARSING_ERRORS:  # a KeyError if there is no such element
            continue
    if said:
        raise VolumeError(
            f"{path}: a mosaic: the image holds several slices side by side, and no standard attribute gives the "
            "position of each. Convert it (for example with dcm2niix) and send the NIfTI file."
        )


def _refuse_reversed_rows(path: Path, header: pydicom.Dataset) -> None:
    """Refuse images of a GE research sequence that may be stored with reversed rows without any mark in the header."""
    try:
        block = header.private_block(0x0019, "GEMS_ACQU_01")
        reversed_rows = "epi_pepolar" in str(block[0x9C].value) and int(block[0xB3].value or 0) != 0
    except PARSING_ERRORS:  # a KeyError if there is no such element
        return
    if reversed_rows:
        raise VolumeError(
            f"{path}: an image of the sequence epi_pepolar with reversed phase polarity, which may store rows in "
            "reverse without any mark; convert it (for example with dcm2niix) and send the NIfTI file."
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
        raise VolumeError(f"{path}: a slice of {rows} x {columns} pixels is implausibly large; the header is damaged.")
    try:
        plane = make_plane(
            position, orientation, spacing, (rows, columns), decimals(where, "ImagePositionPatient", path)
        )
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    return Slice(source, frame, plane, *_rescale(source, frame))


def _rescale(source: DicomHeader, frame: int | None) -> tuple[float, float]:
    """Return Rescale Slope and Intercept from the same functional group or object; (1, 0) if they are absent."""
    path = source.path
    said = _rescale_of(source, frame) or pydicom.Dataset()
    slope, intercept = numbers(said, "RescaleSlope", path), numbers(said, "RescaleIntercept", path)
    pair = (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0])
    if not np.isfinite(pair).all() or pair[0] == 0 or max(map(abs, pair)) > 2**30:
        raise VolumeError(f"{path}: Rescale Slope {pair[0]} and Intercept {pair[1]} are not valid.")
    return pair


def _rescale_of(source: DicomHeader, frame: int | None) -> pydicom.Dataset | None:
    """Return the data set that holds the rescaling of a frame; None if there is none."""
    places = (_first(source, frame, _TRANSFORMATION, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return next((place for place in places if place is not None), None)


def _first(source: DicomHeader, frame: int | None, group: str, keyword: str) -> pydicom.Dataset | None:
    """Return the data set that holds an attribute of a frame; None if there is none.

    That is the frame's own functional group, the shared one, or the object itself if it leaves out the group. A
    position in the object itself is used only if there is a single frame.
    """
    candidates = [] if frame is None else _groups(source, group, frame)
    alone = frame is None or len(items(source.dataset, "PerFrameFunctionalGroupsSequence", source.path)) < 2
    if alone or keyword != "ImagePositionPatient":
        candidates.append(source.dataset)
    return next((one for one in candidates if value(one, keyword, source.path) is not None), None)


def _groups(source: DicomHeader, keyword: str, frame: int) -> list[pydicom.Dataset]:
    """Return the items of a functional group that apply to a frame: its own first, then the shared ones."""
    own = items(source.dataset, "PerFrameFunctionalGroupsSequence", source.path)
    shared = items(source.dataset, "SharedFunctionalGroupsSequence", source.path)
    return [found for item in (*own[frame : frame + 1], *shared[:1]) for found in items(item, keyword, source.path)[:1]]
