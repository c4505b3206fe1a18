"""Structures from a radiotherapy structure set (RTSTRUCT, PS3.3 A.19), filled on the slices they were drawn on.

Contours are polygons in patient coordinates (ROI Contour Module, PS3.3 C.8.8.6). They are filled where they lie: a
contour belongs to the slice within half a slice distance, and voxels whose centres it encloses are inside. Nothing is
interpolated between slices.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from semiseg.collection.label_file import LabelFile, items, texts
from semiseg.collection.polygons import fill_even_odd
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import numbers, read_dicom, text
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.volume import Volume

SOLID = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Contours that enclose an area; the second says by its name that contours within each other cut holes."""
_HALF = 0.499  # a contour midway between two slices belongs to neither
_ONE_PLANE = 0.1  # slices: contours closer than this lie in one plane


def describe_rtstruct(path: Path) -> LabelFile:
    """Read what a structure set names and refers to; structures without contours are not among the names.

    Raises:
        VolumeError: not readable.
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
        if called.count(name) > 1:  # even-odd filling would take one from the other
            unusable[name] = f"{called.count(name)} structures are called '{name}'."
        elif contours and not kinds & set(SOLID):
            unusable[name] = f"'{name}' has contours of type {', '.join(sorted(kinds))} only, which enclose nothing."
        elif contours:
            names.append(name)
    for roi in items(struct, "StructureSetROISequence", path):
        frames |= set(texts([roi], "ReferencedFrameOfReferenceUID", path))
    return LabelFile(
        path, "RTSTRUCT", tuple(names), unusable, frozenset(instances), frozenset(series), frozenset(frames)
    )


class RtstructOutlines:
    """A structure set, opened on the grid of its scan.

    Args:
        path: the file.
        grid: the scan, with its slices along the third axis.
        frame: Frame of Reference UID of the scan; "" where nothing is to be compared.

    Raises:
        VolumeError: not readable.
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
        """The voxels (X, Y, Z) whose centres the contours of ``name`` enclose by the even-odd rule.

        Raises:
            VolumeError: a contour that is not closed and planar, lies on no slice, or was drawn in another frame of
                reference; two planes of contours on one slice.
        """
        strange = self._frame_of[name] - {self._frame}
        if self._frame and strange:
            raise VolumeError(
                f"{self._path}: structure '{name}' was drawn in another frame of reference than the scan's."
            )
        slices: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
        for contour in self._contours[name]:
            points = self._in_voxels(contour, name)
            slices[round(float(points[:, 2].mean()))].append(points)
        out = np.zeros(self._grid.shape, dtype=bool)
        for k, polygons in slices.items():
            heights = [float(points[:, 2].mean()) for points in polygons]
            if max(heights) - min(heights) > _ONE_PLANE:
                apart = (max(heights) - min(heights)) * self._grid.spacing[2]
                raise VolumeError(
                    f"{self._path}: structure '{name}' has contours in planes {apart:.2f} mm apart that fall on one "
                    f"slice ({k + 1} of {self._grid.shape[2]}); it was drawn on thinner slices than the scan's."
                )
            out[:, :, k] = fill_even_odd([points[:, :2] for points in polygons], self._grid.shape[:2])
        drawn = sorted(slices)
        between = drawn[-1] - drawn[0] + 1 - len(drawn) if drawn else 0
        if between:
            self._remarks[name].append(f"'{name}' has no contour on {between} slice(s) between others that have one.")
        return out

    def remarks(self, name: str) -> list[str]:
        """Slices that were skipped in drawing."""
        return self._remarks[name]

    def _in_voxels(self, contour: pydicom.Dataset, name: str) -> NDArray[np.float64]:
        """The points (N, 3) of a contour as voxel indices."""
        kind = text(contour, "ContourGeometricType", self._path) or "no type"
        if kind not in SOLID:
            raise VolumeError(f"{self._path}: structure '{name}' has a contour of type {kind}; CLOSED_PLANAR is read.")
        found = numbers(contour, "ContourData", self._path)
        if found is None or len(found) % 3 or not np.isfinite(found).all():
            raise VolumeError(f"{self._path}: a contour of structure '{name}' has no points or a broken list of them.")
        points = np.array(found).reshape(-1, 3)
        to_index = np.linalg.inv(lps_to_ras(self._grid.affine))
        indices: NDArray[np.float64] = points @ to_index[:3, :3].T + to_index[:3, 3]
        k = round(float(indices[:, 2].mean()))
        aside = float(np.abs(indices[:, 2] - k).max())
        if aside > _HALF or not 0 <= k < self._grid.shape[2]:
            low, high = indices[:, 2].min() + 1, indices[:, 2].max() + 1
            where = f"{low:.2f}" if high - low < 0.01 else f"{low:.2f} to {high:.2f}"
            raise VolumeError(
                f"{self._path}: structure '{name}' has a contour on no slice of the scan (at slice {where} of "
                f"{self._grid.shape[2]})."
            )
        return indices


def _contours(struct: pydicom.Dataset, path: Path) -> dict[str, list[pydicom.Dataset]]:
    """The contours of every structure by its name."""
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
