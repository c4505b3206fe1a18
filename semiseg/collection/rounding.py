"""Contour points back in the places that rounding moved them away from.

A point of a contour is written in mm with a limited number of decimals, and so are the position and the direction of
its image. A point that was drawn at the centre of a pixel is read a little beside it, and whether the centre lies in
the contour or not would be a matter of chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.polygons import EXACT
from semiseg.volumes.volume import GRID_TOLERANCE

_MOST_DECIMALS = 6
_NEAR = 2 * GRID_TOLERANCE
"""Pixels: a point further away from a centre, a corner or the middle of an edge was not drawn there: a place may be
GRID_TOLERANCE off, and rounding may do as much again (one decimal of a mm, pixels of half a mm)."""
_LEAST, _MOST = 1e-3, 0.02
"""Pixels: tolerance for a contour drawn anywhere. A centre this near to it belongs to it, so that its area grows by as
much on all sides: by 0.4 % for a circle of 10 pixels at most."""


def count_decimals(values: NDArray[np.float64]) -> int:
    """The smallest number of decimals that all values can be written with, 6 for more than that."""
    for count in range(_MOST_DECIMALS):
        scaled = values * 10.0**count
        if (np.abs(scaled - np.rint(scaled)) <= 1e-5).all():
            return count
    return _MOST_DECIMALS


def rounding_error(points: NDArray[np.float64], to_index: NDArray[np.float64]) -> NDArray[np.float64]:
    """The most by which the decimals of points in mm (N, 3) may have moved them along i and j, in pixels (2,).

    A whole unit of the last decimal, since some programs cut decimals off. Each axis of the patient has decimals of its
    own: the slice's position often has more than the rest.

    Args:
        points: x, y, z in mm, as they are written.
        to_index: (3, 3) or (4, 4), from mm to voxel indices.
    """
    unit = np.array([10.0 ** -count_decimals(points[:, axis]) for axis in range(3)])
    return np.asarray(np.abs(to_index[:2, :3]) @ unit)


def undo_rounding(points: NDArray[np.float64], moved: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The points of a contour (N, 2), in pixels, and the distance from it within which a centre lies on it.

    Where every point lies by the same offset beside a pixel's centre, a corner, or the middle of an edge between two
    pixels, but for what rounding may have done, the contour was drawn through such places by a program, and its points
    are put there. A contour that was drawn by hand has no such offset and stays as it is.

    Args:
        points: points as read from the file.
        moved: (2,), the most by which rounding may have moved them; see :func:`rounding_error`.
    """
    places = np.rint(points * 2) / 2
    beside = points - places
    spread = beside.max(axis=0) - beside.min(axis=0)
    if np.abs(beside).max() <= _NEAR and (spread <= 2 * moved + _LEAST).all():
        return places, EXACT
    return points, float(np.clip(moved.max() / 2, _LEAST, _MOST))
