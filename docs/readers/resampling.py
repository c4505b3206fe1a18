"""What leaning or uneven slices should look like on the product's regular grid, worked out from world positions.

The product moves and blends whole slices; here each voxel of its grid is taken to the patient's millimetres and from
there to the two slices around it, whose values are interpolated linearly (SciPy). The slices and their positions come
from GDCM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from docs.readers.grids import Grid
from docs.readers.reference_readers import LPS_TO_RAS, Image

TOLERATED_PIXELS = 0.25
"""semiseg.volumes.dicom_geometry.TILT_TOLERANCE_PIXELS: cosines are written with few decimals."""


def interpolate_on(grid: Grid, images: Sequence[Image]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values on a grid, linearly interpolated between slices, and where slices reach on all sides.

    Args:
        grid: the product's volume, whose third axis is the slices' normal.
        images: single slices as ITK reads them.
    """
    normal = images[0].direction[:, 2]
    ordered = sorted(images, key=lambda image: float(image.origin @ normal))
    # Of copies of one place the first is enough.
    ordered = ordered[:1] + [b for a, b in pairwise(ordered) if float((b.origin - a.origin) @ normal) > 5e-3]
    ordered = _upright(ordered)
    heights = np.array([float(image.origin @ normal) for image in ordered])
    affine = LPS_TO_RAS @ grid.affine
    out = np.zeros(grid.array.shape)
    inside = np.ones(grid.array.shape, dtype=np.bool_)
    columns, rows = np.meshgrid(*(np.arange(n) for n in grid.array.shape[:2]), indexing="ij")
    for z in range(grid.array.shape[2]):
        points = affine[:3, :3] @ np.stack([columns.ravel(), rows.ravel(), np.full(columns.size, z)]) + affine[:3, 3:]
        height = float(points[:, 0] @ normal)
        below = min(max(int(np.searchsorted(heights, height + 1e-3, side="right")) - 1, 0), len(heights) - 2)
        share = (height - heights[below]) / (heights[below + 1] - heights[below])
        plane = np.zeros(columns.size)
        for image, weight in ((ordered[below], 1 - share), (ordered[below + 1], share)):
            if abs(weight) < 1e-3:
                continue
            values, reached = _within(image, points)
            plane += weight * values
            inside[:, :, z] &= reached.reshape(columns.shape)
        out[:, :, z] = plane.reshape(columns.shape)
    return out, inside


def _upright(ordered: Sequence[Image]) -> list[Image]:
    """Slices that lie less than a quarter of a pixel aside, which the product does not move, in one line."""
    first = ordered[0]
    along = first.direction[:, :2]
    aside = np.array([along.T @ (image.origin - first.origin) / first.spacing[:2] for image in ordered])
    if np.abs(aside).max() > TOLERATED_PIXELS:
        return list(ordered)
    moved = [image.origin - along @ (shift * first.spacing[:2]) for image, shift in zip(ordered, aside, strict=True)]
    return [replace(image, origin=origin) for image, origin in zip(ordered, moved, strict=True)]


def _within(image: Image, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Values of one slice at points (3, N), moved along its normal into its plane; and which points it holds."""
    pixels = np.asarray(image.frames[0], dtype=np.float64)
    aside = points - image.origin[:, None]
    column = image.direction[:, 0] @ aside / image.spacing[0]
    row = image.direction[:, 1] @ aside / image.spacing[1]
    edge = 2e-3
    reached = (
        (column > -edge) & (column < pixels.shape[1] - 1 + edge) & (row > -edge) & (row < pixels.shape[0] - 1 + edge)
    )
    at = [np.clip(row, 0, pixels.shape[0] - 1), np.clip(column, 0, pixels.shape[1] - 1)]
    return np.asarray(map_coordinates(pixels, at, order=1)), reached
