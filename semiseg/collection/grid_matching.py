"""Maps the voxels of an array to a grid that has the same voxels in another order.

Converters permute and flip axes: a label drawn on a DICOM series and stored as NIfTI often has reversed axes. Nothing
is lost as long as every voxel centre of the label is a voxel centre of the scan. Any other label is refused: the user
has to decide if it may be resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.volume import GRID_TOLERANCE, Volume


@dataclass(frozen=True, eq=False)
class GridMapping:
    """Mapping from indices of an array to indices of a grid: index in grid = start + steps @ index in array.

    Attributes:
        start: (3,) integers.
        steps: (3, N) integers; each column is plus or minus one along one axis of the grid, no two along the same one.
    """

    start: NDArray[np.int64]
    steps: NDArray[np.int64]

    def indices(self, where: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Convert indices (N, M) in the array to indices in the grid, as a tuple for NumPy."""
        return tuple(self.start[:, None] + self.steps @ where)


def find_in_grid(grid: Volume, affine: NDArray[np.float64], shape: tuple[int, ...]) -> GridMapping:
    """Find an array's voxels in ``grid``.

    Args:
        grid: Grid of the scan.
        affine: (4, N + 1) matrix from the array's N indices to RAS+ mm.
        shape: N sizes of the array.

    Raises:
        VolumeError: The array's voxels are not voxels of the grid; the message gives the difference.
    """
    to_index = np.linalg.inv(grid.affine) @ affine
    exact, origin = to_index[:3, :-1], to_index[:3, -1]
    steps, start = np.rint(exact).astype(np.int64), np.rint(origin).astype(np.int64)
    # Each axis of the array runs along one axis of the grid and no two along the same.
    if not (np.abs(steps).sum(axis=0) == 1).all() or (np.abs(steps).sum(axis=1) > 1).any():
        raise VolumeError(_why(grid, affine))
    last = np.array([n - 1 for n in shape])
    corners = np.stack(np.meshgrid(*([0, n] for n in last), indexing="ij")).reshape(len(shape), -1)
    aside = np.abs(origin[:, None] + exact @ corners - start[:, None] - steps @ corners).max()
    if aside > GRID_TOLERANCE:
        if np.abs(origin - start).max() > GRID_TOLERANCE:
            raise VolumeError(f"its voxels lie up to {aside:.2f} of a voxel away from the scan's.")
        raise VolumeError(_why(grid, affine))
    reached = start[:, None] + steps @ corners
    if (reached < 0).any() or (reached >= np.array(grid.shape)[:, None]).any():
        low, high = reached.min(axis=1).tolist(), reached.max(axis=1).tolist()
        size = " x ".join(str(n) for n in grid.shape)
        raise VolumeError(f"it reaches from voxel {low} to {high} of a scan of {size} voxels.")
    return GridMapping(start, steps)


def reorder_to_grid(grid: Volume, label: Volume) -> NDArray[Any]:
    """Return the array of ``label`` in the order of the voxels of ``grid``.

    Raises:
        VolumeError: The voxels of ``label`` are not those of ``grid``: they lie elsewhere, or there are more or fewer.
    """
    try:
        placement = find_in_grid(grid, label.affine, label.shape)
    except VolumeError as error:
        raise VolumeError(f"The label lies on another grid than its scan: {error}") from error
    if sorted(label.shape) != sorted(grid.shape) or label.array.size != grid.array.size:
        sizes = [" x ".join(str(n) for n in shape) for shape in (label.shape, grid.shape)]
        raise VolumeError(
            f"The label lies on another grid than its scan: it has {sizes[0]} voxels, the scan {sizes[1]}."
        )
    axes = np.abs(placement.steps).argmax(axis=0)  # axis of the grid for each axis of the label
    flipped = tuple(axis for axis in range(3) if placement.steps[axes[axis], axis] < 0)
    return np.transpose(np.flip(label.array, axis=flipped), np.argsort(axes))


def _why(grid: Volume, affine: NDArray[np.float64]) -> str:
    own = np.linalg.norm(affine[:3, :-1], axis=0)
    if all(min(abs(length - spacing) / spacing for spacing in grid.spacing) < 1e-3 for length in own):
        return "its axes are rotated relative to the scan's."
    sizes = [" x ".join(f"{v:.4g}" for v in spacing) for spacing in (own, grid.spacing)]
    return f"its voxels measure {sizes[0]} mm and the scan's {sizes[1]} mm."
