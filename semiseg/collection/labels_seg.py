"""Reads structures from a DICOM Segmentation object (SEG, PS3.3 A.51) on the voxels of the series it was drawn on.

Every frame has its own position and orientation (PS3.3 C.7.6.16.2), so frames may come in any order, have reversed
axes, or cover a part of a slice. A SEG whose pixels are not the scan's own voxels is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels

from semiseg.collection.grid_matching import GridMapping, find_in_grid
from semiseg.collection.label_file import LabelFile, items, texts
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import PARSING_ERRORS, numbers, one_line, read_dicom, text
from semiseg.volumes.dicom_geometry import lps_to_ras, make_plane
from semiseg.volumes.volume import Volume


def describe_seg(path: Path) -> LabelFile:
    """Read the names and references of a SEG.

    Raises:
        VolumeError: The file is not readable, or has no segments.
    """
    seg = read_dicom(path, pixels=False)
    instances: set[str] = set()
    series = items(seg, "ReferencedSeriesSequence", path)
    for item in series:
        instances |= set(texts(items(item, "ReferencedInstanceSequence", path), "ReferencedSOPInstanceUID", path))
    groups = [
        *items(seg, "SharedFunctionalGroupsSequence", path),
        *items(seg, "PerFrameFunctionalGroupsSequence", path),
    ]
    for group in groups:
        for derivation in items(group, "DerivationImageSequence", path):
            instances |= set(texts(items(derivation, "SourceImageSequence", path), "ReferencedSOPInstanceUID", path))
    names = tuple(dict.fromkeys(_names(seg, path).values()))
    if not names:
        raise VolumeError(f"{path}: the SEG describes no segments.")
    return LabelFile(
        path=path,
        kind="SEG",
        names=names,
        instances=frozenset(instances),
        series=frozenset(texts(series, "SeriesInstanceUID", path)),
        frames=frozenset(filter(None, [text(seg, "FrameOfReferenceUID", path)])),
    )


class SegReader:
    """A SEG, opened on the grid of its scan.

    BINARY segments are used as they are, FRACTIONAL ones are thresholded at half of the maximum value (inclusive), and
    LABELMAP ones are found by their number. Segments with the same name are one structure.

    Raises:
        VolumeError: The frames do not lie on the voxels of ``grid``, or cannot be decoded.
    """

    def __init__(self, path: Path, grid: Volume) -> None:
        self._path, self._grid = path, grid
        self._seg = read_dicom(path, pixels=True)
        self._names = _names(self._seg, path)
        self._kind = text(self._seg, "SegmentationType", path)
        if self._kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise VolumeError(f"{path}: a SEG of type '{self._kind}' is not supported.")
        maximum = numbers(self._seg, "MaximumFractionalValue", path)
        self._half = (255 if maximum is None else maximum[0]) / 2
        self._frames = _frames(self._seg, path, grid, labelmap=self._kind == "LABELMAP")

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels (X, Y, Z) of every segment called ``name``."""
        wanted = {number for number, called in self._names.items() if called == name}
        labelmap = self._kind == "LABELMAP"
        chosen = [k for k, (number, _) in enumerate(self._frames) if labelmap or number in wanted]
        out = np.zeros(self._grid.shape, dtype=bool)
        if not chosen:
            return out
        try:
            for k, pixels in zip(chosen, iter_pixels(self._seg, indices=chosen), strict=True):
                if labelmap:
                    inside = np.isin(pixels, sorted(wanted))
                else:
                    inside = pixels >= self._half if self._kind == "FRACTIONAL" else pixels != 0
                rows, columns = np.nonzero(inside)
                out[self._frames[k][1].indices(np.stack([columns, rows]))] = True
        except PARSING_ERRORS as error:
            raise VolumeError(f"{self._path}: the frames of the SEG cannot be decoded ({one_line(error)}).") from error
        return out

    def notes(self, name: str) -> list[str]:
        """Return a note if several segments were combined."""
        count = sum(called == name for called in self._names.values())
        return [f"'{name}' combines {count} segments of the SEG."] if count > 1 else []


def _names(seg: pydicom.Dataset, path: Path) -> dict[int, str]:
    out: dict[int, str] = {}
    for item in items(seg, "SegmentSequence", path):
        number = numbers(item, "SegmentNumber", path)
        name = text(item, "SegmentLabel", path)
        if number is None or (not name and int(number[0]) != 0):
            raise VolumeError(f"{path}: a segment of the SEG has no number or no label.")
        if int(number[0]) != 0:  # 0 is the background of a LABELMAP
            out[int(number[0])] = name
    return out


def _frames(seg: pydicom.Dataset, path: Path, grid: Volume, *, labelmap: bool) -> list[tuple[int, GridMapping]]:
    """Return (segment number, place in the grid) of every frame, in the order of the pixel data."""
    size = [numbers(seg, keyword, path) for keyword in ("Rows", "Columns", "NumberOfFrames")]
    if any(found is None for found in size):
        raise VolumeError(f"{path}: the SEG lacks Rows, Columns or Number of Frames.")
    rows, columns, count = (int(found[0]) for found in size if found is not None)
    shared = (items(seg, "SharedFunctionalGroupsSequence", path) or [pydicom.Dataset()])[0]
    frames = items(seg, "PerFrameFunctionalGroupsSequence", path)
    if len(frames) != count:
        raise VolumeError(f"{path}: the SEG has {count} frames but describes {len(frames)}.")
    out = []
    for number, frame in enumerate(frames, start=1):
        place_ = _placement(frame, shared, (rows, columns), path, grid, number)
        segment = _functional(frame, shared, "SegmentIdentificationSequence", "ReferencedSegmentNumber", path)
        if segment is None and not labelmap:
            raise VolumeError(f"{path}: frame {number} of the SEG does not name its segment.")
        out.append((0 if segment is None else int(segment[0]), place_))
    return out


def _placement(
    frame: pydicom.Dataset, shared: pydicom.Dataset, size: tuple[int, int], path: Path, grid: Volume, number: int
) -> GridMapping:
    found = [
        _functional(frame, shared, sequence, keyword, path)
        for sequence, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
        )
    ]
    if any(values is None for values in found):
        raise VolumeError(f"{path}: frame {number} of the SEG has no position in the patient.")
    position, orientation, spacing = (values for values in found if values is not None)
    plane = make_plane(position, orientation, spacing, size)
    affine = np.zeros((4, 3))
    affine[:3, 0] = np.array(plane.along_row) * plane.column_spacing
    affine[:3, 1] = np.array(plane.along_column) * plane.row_spacing
    affine[:, 2] = (*plane.position, 1)
    try:
        return find_in_grid(grid, lps_to_ras(affine), (plane.columns, plane.rows))
    except VolumeError as error:
        raise VolumeError(f"{path}: frame {number} of the SEG lies on another grid than the scan: {error}") from error


def _functional(
    frame: pydicom.Dataset, shared: pydicom.Dataset, sequence: str, keyword: str, path: Path
) -> list[float] | None:
    """Return a value from a functional group of the frame, or else from the one that all frames share."""
    for group in (frame, shared):
        for item in items(group, sequence, path):
            found = numbers(item, keyword, path)
            if found is not None:
                return found
    return None
