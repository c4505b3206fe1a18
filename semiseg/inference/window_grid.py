"""The grid of windows over a volume: the windows near given voxels, and the voxels that a set of windows decides.

A voxel is decided by all windows that cover it. Along each axis these windows are consecutive, so every question here
is a count over a box of windows, or of blocks, and is answered one axis after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.slab import Triple
from semiseg.inference.windows import starts_along

Place = tuple[slice, slice, slice]
Indices = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
_Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a volume.

    Attributes:
        shape: Size of the volume in voxels, at least that of a window along each axis.
        window: Size of a window in voxels.
        starts: First voxels of the windows along each axis.
    """

    shape: Triple
    window: Triple
    starts: tuple[list[int], list[int], list[int]]

    @classmethod
    def covering(cls, shape: Triple, window: Triple, overlap: tuple[float, float, float]) -> WindowGrid:
        """Return the windows that cover a volume of ``shape`` voxels with these overlaps along the axes."""
        x, y, z = (starts_along(n, w, share) for n, w, share in zip(shape, window, overlap, strict=True))
        return cls(shape, window, (x, y, z))

    @property
    def count(self) -> int:
        """Number of windows."""
        return prod(len(along) for along in self.starts)

    def windows_near(
        self, blocks: NDArray[np.bool_], block: Triple, margin: tuple[float, float, float]
    ) -> NDArray[np.bool_]:
        """Find the windows that contain, or lie within a margin of, marked blocks of voxels.

        Args:
            blocks: True for each marked block (BX, BY, BZ) of the volume; the last one along an axis may reach beyond
                the volume.
            block: Size of a block in voxels.
            margin: Distance along each axis in voxels.

        Returns:
            True for each window found, (X, Y, Z) in the order of ``starts``.
        """
        ranges = []
        for count, starts, side, step, far in zip(blocks.shape, self.starts, self.window, block, margin, strict=True):
            reach = math.ceil(far)
            # For each window, the range of blocks that the window with its margin touches.
            ranges.append(
                [(max(0, (at - reach) // step), min(count, -(-(at + side + reach) // step))) for at in starts]
            )
        return _counts(blocks, ranges) > 0

    def region(self, needed: NDArray[np.bool_]) -> WindowRegion:
        """Return the voxels that are decided if only the windows ``needed`` (X, Y, Z) are run."""
        edges, ranges = [], []
        for size, starts, side in zip(self.shape, self.starts, self.window, strict=True):
            found = sorted({*starts, *(at + side for at in starts), size})
            edges.append(np.asarray(found))
            covering = [[k for k, at in enumerate(starts) if at <= first < at + side] for first in found[:-1]]
            ranges.append([(among[0], among[-1] + 1) for among in covering])
        x, y, z = edges
        return WindowRegion(needed, _counts(~needed, ranges) == 0, (x, y, z))


@dataclass(frozen=True, eq=False)
class WindowRegion:
    """A selection of windows, and the voxels that they decide, that is, those all of whose windows are selected.

    Attributes:
        needed: True for each selected window, (X, Y, Z) in the order of the grid's starts.
        cells: True for each cell (CX, CY, CZ) that belongs to the region. A cell is a box of voxels that are covered by
            the same windows.
        edges: First voxels of the cells along each axis, followed by the size of the volume.
    """

    needed: NDArray[np.bool_]
    cells: NDArray[np.bool_]
    edges: tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.int_]]

    @property
    def count(self) -> int:
        """Number of selected windows."""
        return int(np.count_nonzero(self.needed))

    def crop(self, place: Place) -> tuple[Place, NDArray[np.bool_] | None] | None:
        """Return the smallest box within ``place`` that contains all of its voxels that belong to the region.

        Returns:
            The box, and True for each of its voxels that belongs to the region (None if all of them do); None if no
            voxel does.
        """
        spans = [self._cells_of(axis, cut) for axis, cut in enumerate(place)]
        first = [low for low, _ in spans]
        cells = self.cells[tuple(slice(low, high) for low, high in spans)]
        if not cells.any():
            return None
        box, lengths, kept = [], [], []
        for axis, cut in enumerate(place):
            filled = np.flatnonzero(cells.any(axis=tuple(other for other in range(3) if other != axis)))
            low, high = first[axis] + int(filled[0]), first[axis] + int(filled[-1]) + 1
            bounds = np.clip(self.edges[axis][low : high + 1], cut.start, cut.stop)
            box.append(slice(int(bounds[0]), int(bounds[-1])))
            lengths.append(np.diff(bounds))
            kept.append(slice(int(filled[0]), int(filled[-1]) + 1))
        x, y, z = box
        inner = cells[tuple(kept)]
        return (x, y, z), None if inner.all() else _expanded(inner, lengths)

    def contains(self, voxels: Indices) -> NDArray[np.bool_]:
        """Return True for each voxel that belongs to the region; the voxels are given by their three indices."""
        x, y, z = (
            np.searchsorted(edges, along, side="right") - 1 for edges, along in zip(self.edges, voxels, strict=True)
        )
        return np.asarray(self.cells[x, y, z])

    def reached_at_border(self, plane: Callable[[int, int], NDArray[np.bool_]]) -> bool:
        """Return True if a mask contains a voxel of the region next to a voxel that does not belong to the region.

        Args:
            plane: Function that returns a plane (2D) of the mask, called as ``plane(axis, index)``.
        """
        for axis in range(3):
            others = [np.diff(self.edges[other]) for other in range(3) if other != axis]
            cells = np.moveaxis(self.cells, axis, 0)
            for cell, edge in enumerate(self.edges[axis][1:-1]):
                before, after = cells[cell], cells[cell + 1]
                for inside, outside, index in ((before, after, edge - 1), (after, before, edge)):
                    border = inside & ~outside
                    if border.any() and bool((plane(axis, int(index)) & _expanded(border, others)).any()):
                        return True
        return False

    def _cells_of(self, axis: int, cut: slice) -> tuple[int, int]:
        edges = self.edges[axis]
        return (
            int(np.searchsorted(edges, cut.start, side="right")) - 1,
            int(np.searchsorted(edges, cut.stop, side="left")),
        )


def plane_reader(out: NDArray[np.uint8] | NDArray[np.bool_]) -> Callable[[int, int], NDArray[np.bool_]]:
    """Return a function for :meth:`WindowRegion.reached_at_border`.

    Args:
        out: Label map (X, Y, Z), or masks (K, X, Y, Z), whose union is read.
    """

    def plane(axis: int, index: int) -> NDArray[np.bool_]:
        cut = [slice(None)] * (out.ndim - 3) + [index if other == axis else slice(None) for other in range(3)]
        found = out[tuple(cut)] != 0
        return np.asarray(found.any(axis=0) if out.ndim == 4 else found)

    return plane


def _counts(flags: NDArray[np.bool_], ranges: Sequence[_Ranges]) -> NDArray[np.int64]:
    """Return the number of set flags in each box; the sides of the boxes are the ranges along each axis."""
    counts = flags.astype(np.int64)
    for axis, along in enumerate(ranges):
        sums = np.insert(np.cumsum(counts, axis=axis), 0, 0, axis=axis)
        low, high = (np.asarray([pair[end] for pair in along]) for end in (0, 1))
        counts = np.take(sums, high, axis=axis) - np.take(sums, low, axis=axis)
    return counts


def _expanded(cells: NDArray[np.bool_], lengths: Sequence[NDArray[np.int_]]) -> NDArray[np.bool_]:
    """Return one value per voxel from one value per cell and the lengths of the cells in voxels along each axis."""
    out = cells
    for axis, along in enumerate(lengths):
        out = np.repeat(out, along, axis=axis)
    return out
