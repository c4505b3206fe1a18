"""Volumes of several readers on common axes, and what differs between two of them.

Readers number the same voxels differently: dcm2niix flips rows, ITK works in LPS+ and puts slices last. Every volume is
therefore brought to the axes nearest to RAS+ (permuted and flipped, never resampled) before it is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel.orientations as nio
import numpy as np
from numpy.typing import NDArray

PLACE_TOLERANCE_MM = 0.02
"""Positions are written with few decimals, and NIfTI keeps them as float32."""
VALUE_TOLERANCE = 2e-6
"""Share of the largest value by which scaled values may differ: products of float32."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Values (X, Y, Z) and where they are: ``affine`` (4, 4) from voxel indices to RAS+ mm."""

    array: NDArray[Any]
    affine: NDArray[np.float64]

    def canonical(self) -> Grid:
        """The same voxels on axes that point right, anterior and superior as nearly as they can."""
        transform = nio.io_orientation(self.affine)
        array = nio.apply_orientation(self.array, transform)
        return Grid(array, self.affine @ nio.inv_ornt_aff(transform, self.array.shape))


def differences(ours: Grid, theirs: Grid, *, place: bool = True, tolerance: float = 0.0) -> str:
    """What differs between two volumes, as a phrase; "" where they are equal.

    Args:
        ours: the product's volume.
        theirs: another reader's.
        place: True if the places of the voxels count besides their values.
        tolerance: largest difference of values besides rounding; lossy decoders may round differently.
    """
    a, b = ours.canonical(), theirs.canonical()
    if a.array.shape != b.array.shape:
        return f"shape {_sides(a.array.shape)}, theirs {_sides(b.array.shape)}"
    found = []
    if place and (distance := corner_distance(a, b)) > PLACE_TOLERANCE_MM:
        found.append(f"voxels up to {distance:.3g} mm apart")
    if said := value_differences(a.array, b.array, tolerance):
        found.append(said)
    return "; ".join(found)


def corner_distance(a: Grid, b: Grid) -> float:
    """The largest distance in mm between corresponding corners of two grids of one shape."""
    ends = np.array(a.array.shape) - 1
    corners = np.array([(x, y, z, 1) for x in (0, ends[0]) for y in (0, ends[1]) for z in (0, ends[2])], dtype=float)
    return float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())


def value_differences(a: NDArray[Any], b: NDArray[Any], tolerance: float = 0.0) -> str:
    """What differs between the values of two arrays of one shape, as a phrase; "" where they are equal."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    allowed = VALUE_TOLERANCE * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0))) + tolerance
    apart = np.abs(a - b)
    wrong = ~(apart <= allowed)
    if not wrong.any():
        return ""
    return (
        f"{int(wrong.sum())} of {wrong.size} values differ by up to {float(np.nanmax(apart)):.6g} "
        f"({a.min():g}..{a.max():g}, theirs {b.min():g}..{b.max():g})"
    )


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
