"""Reads structures from a segmentation of 3D Slicer (``.seg.nrrd``) on the voxels of the scan it was drawn on.

The grid in the file may be a part of the scan's grid or extend beyond it; only the outlined voxels have to be voxels of
the scan.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.grid_matching import find_in_grid
from semiseg.collection.label_file import LabelFile
from semiseg.errors import VolumeError
from semiseg.volumes.formats.nrrd_header import parse_nrrd
from semiseg.volumes.seg_nrrd import parse_segments, read_seg_nrrd
from semiseg.volumes.volume import Volume


def describe_seg_nrrd(path: Path) -> LabelFile:
    """Read the names in a Slicer segmentation, which does not refer to images.

    Raises:
        VolumeError: The file is not readable, or has no segments.
    """
    segments = parse_segments(parse_nrrd(path))
    if not segments:
        raise VolumeError(f"{path}: the Slicer segmentation describes no segments.")
    return LabelFile(path, "seg.nrrd", tuple(dict.fromkeys(segment.name for segment in segments)))


class SegNrrdReader:
    """A Slicer segmentation, opened on the grid of its scan; segments with the same name are one structure.

    Args:
        path: Path of the file.
        grid: Grid of the scan.

    Raises:
        VolumeError: The file is not readable, or its outlined voxels are not voxels of ``grid``.
    """

    def __init__(self, path: Path, grid: Volume) -> None:
        self._grid = grid
        self._stored, self._segments = read_seg_nrrd(path)
        self.file_warnings = tuple(remark.text for remark in self._stored.warnings)
        outlined = np.argwhere((self._stored.array != 0).any(axis=-1))
        if not len(outlined):
            self._placement = None
            return
        first, last = outlined.min(axis=0), outlined.max(axis=0)
        affine = self._stored.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ first
        self._first = first
        try:
            self._placement = find_in_grid(grid, affine, tuple(int(n) for n in last - first + 1))
        except VolumeError as error:
            raise VolumeError(f"{path}: the label lies on another grid than its scan: {error}") from error

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels (X, Y, Z) of every segment called ``name``."""
        out = np.zeros(self._grid.shape, dtype=bool)
        if self._placement is None:
            return out
        for segment in self._segments:
            if segment.name == name:
                where = np.argwhere(segment.mask(self._stored)) - self._first
                out[self._placement.indices(where.T)] = True
        return out

    def notes(self, name: str) -> list[str]:
        """Return a note if several segments were combined."""
        count = sum(segment.name == name for segment in self._segments)
        return [f"'{name}' combines {count} segments of the file."] if count > 1 else []
