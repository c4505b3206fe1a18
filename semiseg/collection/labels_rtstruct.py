"""Reads structures from a radiotherapy structure set (RTSTRUCT, PS3.3 A.19) and fills them on their slices.

Contours are polygons in patient coordinates (ROI Contour Module, PS3.3 C.8.8.6). They are filled in place: a contour
belongs to the slice within half a slice distance, and voxels whose centres it encloses or runs through are inside
(PS3.3 C.8.8.6.3). :mod:`semiseg.collection.contour_sets` combines several contours on one slice; where that is a matter
of convention, the report has a note. Nothing is interpolated between slices.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from semiseg.collection.contour_sets import Contour, ContourConvention, fill_contours
from semiseg.collection.label_file import LabelFile, items, texts
from semiseg.collection.rounding import rounding_error, undo_rounding
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import numbers, read_dicom, text
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.volume import Volume

_XOR = "CLOSEDPLANAR_XOR"
SOLID = ("CLOSED_PLANAR", _XOR)
"""Contours that enclose an area; those of the second type are combined by exclusive or (PS3.3 C.8.8.6.3)."""
_POINT = "POINT"
_TOLD: dict[ContourConvention, str] = {
    "hole": "'{name}' has contours inside others on {n} slice(s); they were read as holes, and contours in holes as "
    "islands.",
    "united": "'{name}' has contours that cross or repeat each other on {n} slice(s); they were united.",
    "cancelled": "'{name}' repeats contours of type CLOSEDPLANAR_XOR on {n} slice(s); pairs of them cancel each other.",
    "mixed": "'{name}' has contours of type CLOSED_PLANAR beside CLOSEDPLANAR_XOR on {n} slice(s); all were combined "
    "by exclusive or.",
    "twice": "'{name}' has a contour on {n} slice(s) that encloses a part twice; that part was left out, like the "
    "hole of a keyhole.",
}
_HALF = 0.499  # a contour midway between two slices belongs to neither
_ONE_PLANE = 0.1  # slices: contours closer than this lie in one plane


def describe_rtstruct(path: Path) -> LabelFile:
    """Read the names and references of a structure set; structures without contours are not among the names.

    Raises:
        VolumeError: The file is not readable.
    """
    struct = read_dicom(path, pixels=False)
    instances: set[str] = set()
    series: set[str] = set()
    frames: set[str] = set()
    for frame in items(struct, "ReferencedFrameOfReferenceSequence", path):
        frames |= set(texts([frame], "FrameOfReferenceUID", path))
        for study in items(frame, "RTReferencedStudySequence", path):
            for one in items(study, "RTReferencedSeriesSequence", path):
                series |= set(texts([one], "SeriesInstanceUID", path))
                instances |= set(texts(items(one, "ContourImageSequence", path), "ReferencedSOPInstanceUID", path))
    called = list(texts(items(struct, "StructureSetROISequence", path), "ROIName", path))
    names: list[str] = []
    unusable: dict[str, str] = {}
    for name, contours in _contours(struct, path).items():
        for contour in contours:
            instances |= set(texts(items(contour, "ContourImageSequence", path), "ReferencedSOPInstanceUID", path))
        kinds = {text(contour, "ContourGeometricType", path) or "no type" for contour in contours}
        if called.count(name) > 1:  # it is unknown which of several structures of one name is valid
            unusable[name] = f"{called.count(name)} structures have the name '{name}'."
        elif contours and not kinds & set(SOLID):
            unusable[name] = f"'{name}' has contours of type {', '.join(sorted(kinds))} only, which enclose nothing."
        elif contours:
            names.append(name)
    for roi in items(struct, "StructureSetROISequence", path):
        frames |= set(texts([roi], "ReferencedFrameOfReferenceUID", path))
    return LabelFile(
        path, "RTSTRUCT", tuple(names), unusable, frozenset(instances), frozenset(series), frozenset(frames)
    )


class RtstructReader:
    """A structure set, opened on the grid of its scan.

    Args:
        path: Path of the file.
        grid: Grid of the scan, with its slices along the third axis.
        frame: Frame of Reference UID of the scan; "" if it is not to be compared.

    Raises:
        VolumeError: The file is not readable.
    """

    def __init__(self, path: Path, grid: Volume, frame: str) -> None:
        self._path, self._grid, self._frame = path, grid, frame
        struct = read_dicom(path, pixels=False)
        self._contours = _contours(struct, path)
        self._frame_of: dict[str, set[str]] = defaultdict(set)
        for roi in items(struct, "StructureSetROISequence", path):
            self._frame_of[text(roi, "ROIName", path)] |= set(texts([roi], "ReferencedFrameOfReferenceUID", path))
        self._remarks: dict[str, list[str]] = defaultdict(list)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels (X, Y, Z) whose centres the contours of ``name`` enclose or run through.

        Contours of type POINT beside closed ones enclose nothing; they are left out, with a note.

        Raises:
            VolumeError: A contour is not closed and planar, lies on no slice, or was drawn in another frame of
                reference; or two planes of contours fall on one slice.
        """
        strange = self._frame_of[name] - {self._frame}
        if self._frame and strange:
            raise VolumeError(
                f"{self._path}: structure '{name}' was drawn in another frame of reference than the scan's."
            )
        solid, points = self._solid(name)
        slices: dict[int, list[tuple[float, Contour]]] = defaultdict(list)
        spreads = []
        for contour in solid:
            height, spread, outline = self._on_slice(contour, name)
            spreads.append(spread)
            slices[round(height)].append((height, outline))
        out = np.zeros(self._grid.shape, dtype=bool)
        told: Counter[ContourConvention] = Counter()
        for k, outlines in slices.items():
            heights = [height for height, _ in outlines]
            if max(heights) - min(heights) > _ONE_PLANE:
                apart = (max(heights) - min(heights)) * self._grid.spacing[2]
                raise VolumeError(
                    f"{self._path}: structure '{name}' has contours in planes {apart:.2f} mm apart that fall on one "
                    f"slice ({k + 1} of {self._grid.shape[2]}); it was drawn on thinner slices than those of the scan."
                )
            area = fill_contours([outline for _, outline in outlines], self._grid.shape[:2])
            out[:, :, k] = area.mask
            told.update(area.conventions)
        bent = [spread * self._grid.spacing[2] for spread in spreads if spread > _ONE_PLANE]
        self._remarks[name] = _remarks(name, slices, out, points, bent, told)
        return out

    def notes(self, name: str) -> list[str]:
        """Return notes about omitted contours and used conventions; they exist after :meth:`mask` was called."""
        return self._remarks[name]

    def _solid(self, name: str) -> tuple[list[pydicom.Dataset], int]:
        """Return the closed contours of a structure, and the number of its single points."""
        kinds = [text(contour, "ContourGeometricType", self._path) or "no type" for contour in self._contours[name]]
        closed = any(kind in SOLID for kind in kinds)
        for kind in kinds:
            if kind not in SOLID and not (kind == _POINT and closed):
                raise VolumeError(
                    f"{self._path}: structure '{name}' has a contour of type {kind}; only CLOSED_PLANAR is read."
                )
        solid = [contour for contour, kind in zip(self._contours[name], kinds, strict=True) if kind in SOLID]
        return solid, kinds.count(_POINT)

    def _on_slice(self, contour: pydicom.Dataset, name: str) -> tuple[float, float, Contour]:
        """Return a contour's position and the spread of its points along the slices, in slices, and its pixels."""
        found = numbers(contour, "ContourData", self._path)
        if not found or len(found) % 3 or not np.isfinite(found).all():
            raise VolumeError(f"{self._path}: a contour of structure '{name}' has no points or an invalid list.")
        points = np.array(found).reshape(-1, 3)
        to_index = np.asarray(np.linalg.inv(lps_to_ras(self._grid.affine)), dtype=np.float64)
        indices = points @ to_index[:3, :3].T + to_index[:3, 3]
        height = float(indices[:, 2].mean())
        k = round(height)
        aside = float(np.abs(indices[:, 2] - k).max())
        if aside > _HALF or not 0 <= k < self._grid.shape[2]:
            low, high = indices[:, 2].min() + 1, indices[:, 2].max() + 1
            where = f"{low:.2f}" if high - low < 0.01 else f"{low:.2f} to {high:.2f}"
            raise VolumeError(
                f"{self._path}: structure '{name}' has a contour on no slice of the scan (at slice {where} of "
                f"{self._grid.shape[2]})."
            )
        corners, tolerance = undo_rounding(indices[:, :2], rounding_error(points, to_index))
        exclusive = text(contour, "ContourGeometricType", self._path) == _XOR
        return height, float(np.ptp(indices[:, 2])), Contour(_once(corners), tolerance, exclusive)


def _once(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Remove points that repeat the one before, and a repetition of the whole contour.

    Often the first point is repeated at the end, which the standard forbids (PS3.3 C.8.8.6.1), or the whole contour,
    which would then enclose everything twice.
    """
    moved = (points != np.roll(points, 1, axis=0)).any(axis=1)
    points = points[moved] if moved.any() else points[:1]
    half = len(points) // 2
    return points[:half] if len(points) % 2 == 0 and np.array_equal(points[:half], points[half:]) else points


def _remarks(
    name: str,
    slices: Collection[int],
    mask: NDArray[np.bool_],
    points: int,
    bent: Sequence[float],
    told: Counter[ContourConvention],
) -> list[str]:
    """Make the notes on a structure that was read from contours on ``slices``; ``bent`` are spreads in mm."""
    out = []
    drawn = sorted(slices)
    between = drawn[-1] - drawn[0] + 1 - len(drawn) if drawn else 0
    if between:
        out.append(f"'{name}' has no contour on {between} slice(s) between others that have one.")
    empty = sum(not mask[:, :, k].any() for k in drawn)
    if empty:
        out.append(f"'{name}' has contours on {empty} slice(s) that reach no pixel's centre.")
    if points:
        out.append(f"'{name}' has {points} contour(s) of type POINT, which enclose nothing; they were left out.")
    if bent:
        out.append(
            f"'{name}' has {len(bent)} contour(s) that are not planar: their points differ by up to {max(bent):.2f} "
            "mm across the slices; each was assigned to its nearest slice."
        )
    return out + [sentence.format(name=name, n=told[kind]) for kind, sentence in _TOLD.items() if told[kind]]


def _contours(struct: pydicom.Dataset, path: Path) -> dict[str, list[pydicom.Dataset]]:
    """Return the contours of every structure by its name."""
    number_of: dict[int, str] = {}
    out: dict[str, list[pydicom.Dataset]] = {}
    for roi in items(struct, "StructureSetROISequence", path):
        name, number = text(roi, "ROIName", path), numbers(roi, "ROINumber", path)
        if not name or number is None:
            raise VolumeError(f"{path}: a structure has no name or no number.")
        number_of[int(number[0])] = name
        out.setdefault(name, [])
    for roi in items(struct, "ROIContourSequence", path):
        number = numbers(roi, "ReferencedROINumber", path)
        if number is None or int(number[0]) not in number_of:
            raise VolumeError(f"{path}: contours refer to a structure that the file does not name.")
        out[number_of[int(number[0])]] += items(roi, "ContourSequence", path)
    return out
