"""Undoes the rounding of contour points.

A point of a contour is written in mm with a limited number of decimals, as are the position and the direction of its
image. A point that was drawn at the centre of a pixel is therefore read a little beside it, so that chance would decide
if the centre lies in the contour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.polygons import EXACT
from semiseg.volumes.volume import GRID_TOLERANCE

_MOST_DECIMALS = 6
_NEAR = 2 * GRID_TOLERANCE
"""Distance in pixels; a point further away than this from a centre, a corner or the middle of an edge was not drawn
there. A position may be off by GRID_TOLERANCE, and rounding may add as much (one decimal of a mm, pixels of half a mm).
"""
_LEAST, _MOST = 1e-3, 0.02
"""Smallest and largest tolerance in pixels for a contour drawn anywhere. Centres within the tolerance belong to the
contour, so its area grows by as much on all sides: by 0.4 % for a circle of 10 pixels at most."""


def count_decimals(values: NDArray[np.float64]) -> int:
    """Return the smallest number of decimals with which all values can be written, at most 6."""
    for count in range(_MOST_DECIMALS):
        scaled = values * 10.0**count
        if (np.abs(scaled - np.rint(scaled)) <= 1e-5).all():
            return count
    return _MOST_DECIMALS


def rounding_error(points: NDArray[np.float64], to_index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest displacement of points (N, 3) by rounding along i and j, in pixels (2,).

    It is a whole unit of the last decimal, since some programs truncate decimals. Each axis of the patient has its own
    number of decimals: the slice's position often has more than the others.

    Args:
        points: (N, 3) coordinates x, y, z in mm, as written in the file.
        to_index: (3, 3) or (4, 4) matrix from mm to voxel indices.
    """
    unit = np.array([10.0 ** -count_decimals(points[:, axis]) for axis in range(3)])
    return np.asarray(np.abs(to_index[:2, :3]) @ unit)


def undo_rounding(points: NDArray[np.float64], moved: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Move points of a contour that a program drew through the pixel raster back to it.

    If every point has, within the rounding error, the same offset from a pixel's centre, a corner, or the middle of an
    edge between two pixels, a program drew the contour through such places, and the points are moved there. A contour
    that was drawn by hand has no such offset and is not changed.

    Args:
        points: (N, 2) points in pixels, as read from the file.
        moved: (2,) largest displacement by rounding in pixels; see :func:`rounding_error`.

    Returns:
        The points (N, 2) in pixels, and the distance from the contour within which a centre lies on it.
    """
    places = np.rint(points * 2) / 2
    beside = points - places
    spread = beside.max(axis=0) - beside.min(axis=0)
    if np.abs(beside).max() <= _NEAR and (spread <= 2 * moved + _LEAST).all():
        return places, EXACT
    return points, float(np.clip(moved.max() / 2, _LEAST, _MOST))
