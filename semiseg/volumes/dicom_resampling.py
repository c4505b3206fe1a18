"""Resamples tilted or unevenly spaced stacks of slices onto a regular grid, and masks back onto the slices.

Each slice is moved within its plane to the place that its position gives (a shear for a tilted gantry), and planes
between two slices are interpolated linearly. The grid holds every pixel of every slice: a tilt makes it larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.volumes.dicom_geometry import Irregularity, SliceStack, lps_to_ras, stack_affine

WHOLE_PIXEL = 1e-3
"""A slice whose offset differs from whole pixels by less than this is moved without interpolation."""


@dataclass(frozen=True, eq=False)
class RegularGrid:
    """A regular grid of upright planes at even distances, and the positions of the slices in it.

    Attributes:
        shape: Number of voxels (X, Y, Z).
        affine: (4, 4) matrix from voxel indices to RAS+ mm.
        planes: (N,) position of each slice among the planes, as a fractional index along Z.
        offsets: (N, 2) position of the first pixel of each slice, as fractional indices along X and Y; not negative.
        size: Columns and rows of a slice.
        sheared_affine: (4, 4) matrix from the slices' own indices (column, row, slice) to RAS+ mm; None if their gaps
            are uneven.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    planes: NDArray[np.float64]
    offsets: NDArray[np.float64]
    size: tuple[int, int]
    sheared_affine: NDArray[np.float64] | None

    def image(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Interpolate the image (X, Y, Z) linearly from ``slices`` (columns, rows, N).

        Integers stay integers. Voxels that no slice covers get the smallest value of all, which is that of air.
        """
        fill = float(slices.min())
        out = np.empty(self.shape, dtype=slices.dtype)
        moved: dict[int, NDArray[np.float32]] = {}
        for z in range(self.shape[2]):
            below = min(int(np.searchsorted(self.planes, z + WHOLE_PIXEL, side="right")) - 1, len(self.planes) - 2)
            pair = (below, below + 1)
            moved = {k: moved[k] if k in moved else self._moved(slices[:, :, k], k, fill) for k in pair}
            share = float((z - self.planes[below]) / (self.planes[below + 1] - self.planes[below]))
            plane = moved[below] * np.float32(1.0 - share) + moved[below + 1] * np.float32(share)
            out[:, :, z] = np.rint(plane) if out.dtype.kind in "iu" else plane
        return out

    def labels(self, slices: NDArray[Any], outside: int = 0) -> NDArray[Any]:
        """Resample labels (columns, rows, N) of the slices to the grid (X, Y, Z) by nearest neighbour.

        Voxels that no slice covers get the value ``outside``.
        """
        out = np.full(self.shape, outside, dtype=slices.dtype)
        nearest = np.abs(np.arange(self.shape[2])[:, None] - self.planes[None]).argmin(axis=1)
        for z, k in enumerate(nearest):
            x, y = self._window(int(k))
            out[x, y, z] = slices[:, :, k]
        return out

    def on_slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """Resample labels or masks (..., X, Y, Z) to the slices (..., columns, rows, N) by nearest neighbour."""
        out = np.empty((*array.shape[:-3], *self.size, len(self.planes)), dtype=array.dtype)
        for k, z in enumerate(np.rint(self.planes).astype(int)):
            x, y = self._window(k)
            out[..., k] = array[..., x, y, z]
        return out

    def _window(self, k: int) -> tuple[slice, slice]:
        """Return the ranges of the voxels nearest to the pixels of slice ``k``, along X and Y."""
        x, y = np.rint(self.offsets[k]).astype(int)
        return slice(x, x + self.size[0]), slice(y, y + self.size[1])

    def _moved(self, pixels: NDArray[Any], k: int, fill: float) -> NDArray[np.float32]:
        """Shift the pixels of slice ``k`` to the grid's columns and rows, with linear interpolation."""
        plane = np.full(self.shape[:2], fill, dtype=np.float32)
        whole = np.floor(self.offsets[k] + WHOLE_PIXEL).astype(int)
        plane[whole[0] : whole[0] + self.size[0], whole[1] : whole[1] + self.size[1]] = pixels
        for axis, part in enumerate(self.offsets[k] - whole):
            if part > WHOLE_PIXEL:
                before = np.roll(plane, 1, axis=axis)
                before[(slice(None),) * axis + (0,)] = fill
                plane = plane * np.float32(1.0 - part) + before * np.float32(part)
        return plane


def make_regular_grid(stack: SliceStack, found: Sequence[Irregularity]) -> RegularGrid:
    """Make the grid that corrects the irregularities ``found`` in a stack.

    Its first and last planes are the first and last slices. Missing slices get planes of their own. For uneven gaps the
    planes are as close as the closest slices, but not closer than half the median gap.
    """
    first, gaps = stack.planes[0], stack.gaps
    codes = {irregularity.code for irregularity in found}
    span = float(stack.distances[-1] - stack.distances[0])
    median = float(np.median(gaps))
    wanted = max(float(gaps.min()), median / 2) if "uneven_slices" in codes else median
    count = max(round(span / wanted), 1) + 1
    step = span / (count - 1)
    pixel = np.array([first.column_spacing, first.row_spacing])
    # An upright stack is not moved: its small offsets come from cosines that are written with few decimals.
    offsets = stack.shifts / pixel if "gantry_tilt" in codes else np.zeros_like(stack.shifts)
    low = np.floor(offsets.min(axis=0) + WHOLE_PIXEL)
    more = np.ceil(offsets.max(axis=0) - WHOLE_PIXEL) - low
    along = np.stack([np.array(first.along_row), np.array(first.along_column)], axis=1)
    affine = np.eye(4)
    affine[:3, :2] = along * pixel
    affine[:3, 2] = stack.normal * step
    affine[:3, 3] = np.array(first.position) + along @ (low * pixel)
    return RegularGrid(
        shape=(first.columns + int(more[0]), first.rows + int(more[1]), count),
        affine=lps_to_ras(affine),
        planes=(stack.distances - stack.distances[0]) / step,
        offsets=np.maximum(offsets - low, 0.0),
        size=(first.columns, first.rows),
        sheared_affine=stack_affine(stack) if codes == {"gantry_tilt"} else None,
    )
