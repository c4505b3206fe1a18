"""Where voxels may lie: every axis orientation, tilted grids, and scans whose every voxel is told apart."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from semiseg.volumes.volume import Volume

PAIRS = ("RL", "AP", "SI")
AXIS_ORIENTATIONS = tuple(
    "".join(codes) for order in itertools.permutations(PAIRS) for codes in itertools.product(*order)
)
"""All 48 ways in which three voxel axes can point along the patient's."""


def make_affine(
    axcodes: str,
    spacing: tuple[float, float, float] = (1.5, 0.75, 3.0),
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0),
    origin: tuple[float, float, float] = (-12.5, 40.25, 7.0),
) -> NDArray[np.float64]:
    """The affine of a grid whose axes point along ``axcodes``, then rotated by ``tilt`` degrees about x, y, z."""
    out = np.eye(4)
    directions = np.zeros((3, 3))
    for axis, code in enumerate(axcodes):
        directions["RLAPSI".index(code) // 2, axis] = 1 if code in "RAS" else -1
    out[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ directions * spacing
    out[:3, 3] = origin
    return out


def numbered_volume(shape: tuple[int, int, int], affine: NDArray[np.float64] | None = None) -> Volume:
    """A scan whose voxels are 1, 2, 3, ... in order: no two alike, none of them air."""
    values = np.arange(1, 1 + int(np.prod(shape)), dtype=np.int32).reshape(shape)
    return Volume(values, np.eye(4) if affine is None else affine)


def to_world(affine: NDArray[np.float64], indices: NDArray[np.generic]) -> NDArray[np.float64]:
    """Millimetres (N, 3) of voxel indices (N, 3)."""
    return np.asarray(indices @ affine[:3, :3].T + affine[:3, 3])


def ellipsoid(shape: tuple[int, int, int], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
    """A smooth body in the middle of a grid."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    parts = [((a - (n - 1) / 2) / r) ** 2 for a, n, r in zip(axes, shape, radii, strict=True)]
    return np.asarray(parts[0] + parts[1] + parts[2] <= 1)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """2 |a and b| / (|a| + |b|)."""
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
