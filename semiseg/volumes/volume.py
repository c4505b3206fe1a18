"""Volumes: arrays with the affine that gives the position of their voxels in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel.orientations as nio
import numpy as np
from numpy.typing import ArrayLike, NDArray

from semiseg.errors import VolumeError

GRID_TOLERANCE = 0.1
"""Largest distance, as a share of a voxel, of centres that count as equal: positions are written with few decimals."""


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as text: ``96x96x64``."""
    return "x".join(str(side) for side in shape)


@dataclass(frozen=True, eq=False)
class Volume:
    """A single-channel 3D image.

    Attributes:
        array: Voxel values, shape (X, Y, Z), any real dtype, in the order of the file's own axes.
        affine: (4, 4) float64 matrix from voxel indices to mm in RAS+ world coordinates (NIfTI's convention).

    Raises:
        VolumeError: The array is not 3D or is empty, or the affine is not finite and invertible.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if self.array.ndim != 3:
            raise VolumeError(f"A volume has 3 axes; this one has {self.array.ndim} (shape {self.array.shape}).")
        if self.array.size == 0:
            raise VolumeError(f"The volume is empty (shape {self.array.shape}).")
        check_affine(affine)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z of the file's own axes."""
        x, y, z = self.array.shape
        return (x, y, z)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each axis, in mm."""
        return affine_spacing(self.affine)

    @property
    def axcodes(self) -> str:
        """Nearest anatomical direction of each axis, such as ``"LPS"``."""
        return affine_axcodes(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return voxel_ml(self.affine)


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine that cannot place voxels in space.

    Raises:
        VolumeError: The affine has a wrong shape, a value that is not finite or a last row other than (0, 0, 0, 1), or
            is singular.
    """
    if affine.shape != (4, 4):
        raise VolumeError(f"An affine is a 4x4 matrix; this one has shape {affine.shape}.")
    if not np.isfinite(affine).all():
        raise VolumeError("The affine holds values that are not finite, so the voxels have no position in space.")
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        raise VolumeError(f"The last row of an affine is (0, 0, 0, 1); this one is {affine[3].tolist()}.")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise VolumeError("The affine is singular: two voxel axes point the same way or one has no length.")


def affine_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the length in mm of one voxel step along each axis of ``affine`` (4, 4)."""
    x, y, z = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    return (x, y, z)


def affine_axcodes(affine: NDArray[np.float64]) -> str:
    """Return the nearest anatomical direction of each axis of ``affine`` (4, 4), such as ``"RAS"``."""
    return "".join(nio.aff2axcodes(affine))


def voxel_ml(affine: NDArray[np.float64]) -> float:
    """Return the volume of one voxel of ``affine`` (4, 4) in millilitres."""
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000.0)


def reorient(
    array: NDArray[Any], affine: NDArray[np.float64], axcodes: str
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Permute and flip the last three axes of ``array`` so that they point along ``axcodes``, without rotation.

    Args:
        array: (..., X, Y, Z) array.
        affine: (4, 4) affine of the array's grid.
        axcodes: Three letters such as ``"RAS"``.

    Returns:
        The reoriented view of the array and the affine of its grid; every voxel keeps its world coordinates.
    """
    transform = nio.ornt_transform(nio.io_orientation(affine), nio.axcodes2ornt(axcodes))
    shape = array.shape[-3:]
    leading = array.ndim - 3
    out = array
    for axis, (_, flip) in enumerate(transform):
        if flip == -1:
            out = np.flip(out, axis=leading + axis)
    order = np.argsort(transform[:, 0].astype(int))
    out = np.transpose(out, (*range(leading), *(leading + int(a) for a in order)))
    return out, affine @ nio.inv_ornt_aff(transform, shape)


def corner_distance(a: ArrayLike, b: ArrayLike, shape: Sequence[int]) -> float:
    """Return the largest distance between the corners of a grid of ``shape`` under two affines, in voxels of ``b``.

    The distance is infinite if an affine (4, 4) is singular or not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()) or np.linalg.det(second) == 0:
        return float("inf")
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in shape[:3]), [1], indexing="ij")).reshape(4, -1)
    return float(np.abs(np.linalg.solve(second, (first - second) @ corners)).max())


def same_grid(a: ArrayLike, b: ArrayLike, shape: Sequence[int] | None = None) -> bool:
    """Return True if two affines place the voxels of a grid at the same points, within :data:`GRID_TOLERANCE`.

    Args:
        a, b: (4, 4) affines.
        shape: Number of voxels along each axis; by default 512 along each.
    """
    return corner_distance(a, b, shape or (512, 512, 512)) <= GRID_TOLERANCE
