"""The grid of windows over a volume: which windows lie near something, and which voxels some of them decide alone.

A voxel is decided by all windows that cover it. Along each axis these follow one another in the order of their starts,
so everything here is a count over a box of windows, or of blocks, and is done axis by axis.
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
Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a volume.

    Attributes:
        shape: Voxels of the volume, at least those of the window along each axis.
        window: Voxels of a window.
        starts: First voxels of the windows along each axis.
    """

    shape: Triple
    window: Triple
    starts: tuple[list[int], list[int], list[int]]

    @classmethod
    def of(cls, shape: Triple, window: Triple, overlap: tuple[float, float, float]) -> WindowGrid:
        """The windows that cover ``shape`` with this overlap along each axis."""
        x, y, z = (starts_along(n, w, share) for n, w, share in zip(shape, window, overlap, strict=True))
        return cls(shape, window, (x, y, z))

    @property
    def count(self) -> int:
        """Number of windows."""
        return prod(len(along) for along in self.starts)

    def near(self, hot: NDArray[np.bool_], block: Triple, margin: tuple[float, float, float]) -> NDArray[np.bool_]:
        """The windows that lie within a margin of something.

        Args:
            hot: Blocks (BX, BY, BZ) of the volume that count; the last one along an axis may reach beyond the volume.
            block: Voxels of a block.
            margin: Voxels along each axis.

        Returns:
            One value for each window, (X, Y, Z) in the order of ``starts``.
        """
        ranges = []
        for count, starts, side, step, far in zip(hot.shape, self.starts, self.window, block, margin, strict=True):
            reach = math.ceil(far)
            ranges.append(
                [
                    (max(0, (at - reach) // step), min(count, -(-(at + side + reach) // step)))  # blocks it touches
                    for at in starts
                ]
            )
        return _counts(hot, ranges) > 0

    def region(self, needed: NDArray[np.bool_]) -> WindowRegion:
        """The region that the windows of ``needed`` decide as all windows would."""
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
    """Some windows, and the voxels whose windows are all among them.

    Attributes:
        needed: Whether each window is among them, (X, Y, Z).
        cells: Boxes of voxels that the same windows cover, (CX, CY, CZ): whether all of these are among them.
        edges: First voxels of the cells along each axis, and at last the size of the volume.
    """

    needed: NDArray[np.bool_]
    cells: NDArray[np.bool_]
    edges: tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.int_]]

    @property
    def count(self) -> int:
        """Number of windows."""
        return int(np.count_nonzero(self.needed))

    def within(self, place: Place) -> tuple[Place, NDArray[np.bool_] | None] | None:
        """The smallest box of ``place`` that holds every voxel of it that belongs to the region.

        Returns:
            The box, and which of its voxels belong to the region (None for all); None where no voxel does.
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

    def contains(self, voxels: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]) -> NDArray[np.bool_]:
        """Whether each of some voxels, given by their three indices, belongs to the region."""
        x, y, z = (
            np.searchsorted(edges, along, side="right") - 1 for edges, along in zip(self.edges, voxels, strict=True)
        )
        return np.asarray(self.cells[x, y, z])

    def meets_border(self, plane: Callable[[int, int], NDArray[np.bool_]]) -> bool:
        """Whether a mask reaches a voxel of the region beside which lies a voxel that does not belong to it.

        Args:
            plane: Gives the mask's plane (2D) at an index along an axis: ``plane(axis, index)``.
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


def planes_of(out: NDArray[np.uint8] | NDArray[np.bool_]) -> Callable[[int, int], NDArray[np.bool_]]:
    """The planes of what a label map (X, Y, Z) or masks (K, X, Y, Z) draw, for :meth:`WindowRegion.meets_border`."""

    def plane(axis: int, index: int) -> NDArray[np.bool_]:
        cut = [slice(None)] * (out.ndim - 3) + [index if other == axis else slice(None) for other in range(3)]
        found = out[tuple(cut)] != 0
        return np.asarray(found.any(axis=0) if out.ndim == 4 else found)

    return plane


def _counts(flags: NDArray[np.bool_], ranges: Sequence[Ranges]) -> NDArray[np.int64]:
    """How many flags are set in each box whose sides are ranges, one list of ranges for each axis."""
    counts = flags.astype(np.int64)
    for axis, along in enumerate(ranges):
        sums = np.insert(np.cumsum(counts, axis=axis), 0, 0, axis=axis)
        low, high = (np.asarray([pair[end] for pair in along]) for end in (0, 1))
        counts = np.take(sums, high, axis=axis) - np.take(sums, low, axis=axis)
    return counts


def _expanded(cells: NDArray[np.bool_], lengths: Sequence[NDArray[np.int_]]) -> NDArray[np.bool_]:
    """One value for each voxel, of cells with these numbers of voxels along each axis."""
    out = cells
    for axis, along in enumerate(lengths):
        out = np.repeat(out, along, axis=axis)
    return out
