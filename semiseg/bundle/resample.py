"""Resampling between grids that cover the same box, with voxel edges (not centres) aligned.

Output voxel ``o`` is read at ``(o + 0.5) * n_in / n_out - 0.5``. The two grids cover exactly the same millimetres, so
going there and back returns to the shape and the affine that one started from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, int, int]:
    """Voxels per axis that come closest to ``target`` mm without changing the box (at least 1 per axis)."""
    x, y, z = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))
    return (x, y, z)


def resampled_affine(
    affine: NDArray[np.float64], shape: Sequence[int], new_shape: Sequence[int]
) -> NDArray[np.float64]:
    """The affine of the grid with ``new_shape`` voxels over the box of ``shape`` voxels."""
    zoom = np.asarray(shape, float) / np.asarray(new_shape, float)
    step = np.eye(4)
    step[:3, :3] = np.diag(zoom)
    step[:3, 3] = (zoom - 1.0) / 2.0
    return np.asarray(affine @ step)


def resample_image(array: NDArray[Any], new_shape: Sequence[int]) -> NDArray[np.float32]:
    """Trilinear resampling of (X, Y, Z) to ``new_shape``; beyond the outermost centres the border value holds."""
    image = np.asarray(array, dtype=np.float32)
    if image.shape == tuple(new_shape):
        return image
    zoom = np.asarray(image.shape, float) / np.asarray(new_shape, float)
    out: NDArray[np.float32] = ndimage.affine_transform(
        image, zoom, offset=(zoom - 1.0) / 2.0, output_shape=tuple(new_shape), order=1, mode="nearest"
    )
    return out


def resample_mask(mask: NDArray[np.bool_], new_shape: Sequence[int]) -> NDArray[np.float32]:
    """Share of the mask (X, Y, Z) in each voxel of the new grid, 0..1, by trilinear interpolation."""
    return resample_image(mask, new_shape)


def resample_labels(labels: NDArray[Any], new_shape: Sequence[int]) -> NDArray[Any]:
    """Resample a label map (X, Y, Z) class by class: each new voxel takes the label with the largest share there.

    Class by class keeps the boundary between two segments where it was; nearest-neighbour resampling would turn it into
    steps. Ties go to the smaller label, so background wins over a structure that fills exactly half a voxel.
    """
    if labels.shape == tuple(new_shape):
        return labels
    best = np.full(tuple(new_shape), -1.0, dtype=np.float32)
    out = np.zeros(tuple(new_shape), dtype=labels.dtype)
    for label in np.unique(labels):
        share = resample_mask(labels == label, new_shape)
        wins = share > best + 1e-6
        out[wins] = label
        best[wins] = share[wins]
    return out
