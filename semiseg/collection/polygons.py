"""Determines the pixels that a closed contour encloses, and those that lie on it.

"Points in space lying along the path defined by the contour are considered to be part of the ROI" (PS3.3 C.8.8.6.3).
The centre of a pixel decides. Programs that draw along pixel edges never touch a centre; programs that draw through
the centres of the outermost pixels (OpenCV's contours, and so rt-utils and others) consider these pixels part of the
structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = 1e-4
"""Tolerance in pixels for contours without rounding, and the last digit of a point that is used. Centres that do not
lie on a straight line between two centres or corners are at least 1/2L away from it, with its length L in pixels,
which is more than the tolerance for L up to 5000."""
_DECIMALS = 4


@dataclass(frozen=True, eq=False)
class FilledPolygon:
    """The pixels of one contour, in a window of the image that contains it.

    Attributes:
        window: Slices of the window along i and j.
        inside: Pixels of the window that the contour encloses by the even-odd rule and that do not lie on it.
        path: Pixels of the window whose centres lie on the contour.
        twice: Pixels that the contour goes round an even number of times in the same direction; they are not among
            ``inside``.
    """

    window: tuple[slice, slice]
    inside: NDArray[np.bool_]
    path: NDArray[np.bool_]
    twice: NDArray[np.bool_]


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int], tolerance: float = EXACT) -> FilledPolygon:
    """Fill a contour that is closed by an edge from its last point to its first.

    A pixel is inside if a ray from its centre crosses the contour an odd number of times, so that the hole of a keyhole
    (PS3.3 C.8.8.6.3) is outside for both directions of the contour. A contour without an area (one point, a line)
    encloses nothing, but the centres on it are still its pixels.

    Args:
        points: (N, 2) points in pixels; pixel (i, j) has its centre at exactly (i, j).
        shape: Number of pixels along i and j.
        tolerance: Distance in pixels, below 0.5; centres that are nearer to the contour than this lie on it.
    """
    corners = np.round(np.asarray(points, dtype=np.float64).reshape(-1, 2), _DECIMALS)
    if not len(corners):
        corners = np.full((1, 2), -2.0)
    low = np.clip(np.ceil(corners.min(axis=0) - tolerance), 0, shape).astype(np.int64)
    high = np.clip(np.floor(corners.max(axis=0) + tolerance) + 1, low, shape).astype(np.int64)
    corners = corners - low
    start, end = corners, np.roll(corners, -1, axis=0)
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    turns = _winding(start, end, size)
    path = _path(start, end, size, tolerance)
    inside = (turns % 2 == 1) & ~path
    window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    return FilledPolygon(window, inside, path, (turns % 2 == 0) & (turns != 0) & ~path)


def _winding(start: NDArray[np.float64], end: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the signed winding number of each pixel; it is odd if a ray crosses an odd number of edges."""
    width, height = size
    # Every edge is turned to run upwards in j, so that the same edge of two contours gives the same crossings.
    turned = start[:, 1] > end[:, 1]
    low, high = np.where(turned[:, None], end, start), np.where(turned[:, None], start, end)
    first = np.clip(np.ceil(low[:, 1]), 0, height).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1]), 0, height).astype(np.int64)
    edge, j = expand_ranges(first, last)
    low, high = low[edge], high[edge]
    crossing = low[:, 0] + (j - low[:, 1]) * (high[:, 0] - low[:, 0]) / (high[:, 1] - low[:, 1])
    i = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    steps = np.zeros((width + 1, height), dtype=np.int64)
    np.add.at(steps, (i, j), np.where(turned[edge], -1, 1))
    return np.asarray(np.cumsum(steps[:width], axis=0))


def _path(
    start: NDArray[np.float64], end: NDArray[np.float64], size: tuple[int, int], tolerance: float
) -> NDArray[np.bool_]:
    """Return the pixels whose centres are at most ``tolerance`` away from an edge."""
    out = np.zeros(size, dtype=bool)
    flat = np.abs(end - start)[:, 0] >= np.abs(end - start)[:, 1]
    for picture, chosen, axes in ((out, flat, [0, 1]), (out.T, ~flat, [1, 0])):
        # Along such an edge there is one candidate in each column: the pixel nearest to it.
        a, b = start[chosen][:, axes], end[chosen][:, axes]
        left, right = np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 0], b[:, 0])
        first = np.clip(np.ceil(left - tolerance), 0, picture.shape[0]).astype(np.int64)
        last = np.clip(np.floor(right + tolerance) + 1, 0, picture.shape[0]).astype(np.int64)
        edge, i = expand_ranges(first, last)
        a, along = a[edge], (b - a)[edge]
        share = np.divide(i - a[:, 0], along[:, 0], out=np.zeros(len(i)), where=along[:, 0] != 0)
        j = np.rint(a[:, 1] + np.clip(share, 0, 1) * along[:, 1])
        near = distance_to_edge(np.column_stack([i, j]), a, along) <= tolerance
        near &= (j >= 0) & (j < picture.shape[1])
        picture[i[near], j[near].astype(np.int64)] = True
    return out


def distance_to_edge(
    points: NDArray[np.float64], start: NDArray[np.float64], along: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance of points (..., 2) from edges from ``start`` to ``start + along`` (both (..., 2))."""
    away = points - start
    length = (along**2).sum(axis=-1)
    share = np.divide((away * along).sum(axis=-1), length, out=np.zeros(away.shape[:-1]), where=length != 0)
    rest = away - np.clip(share, 0, 1)[..., None] * along
    return np.asarray(np.hypot(rest[..., 0], rest[..., 1]))


def expand_ranges(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers from each ``first`` to before its ``last``, preceded by the index of each one's range."""
    count = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(count)), count)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
