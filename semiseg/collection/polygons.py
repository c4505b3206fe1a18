"""Which pixels one closed contour encloses, and which lie on it.

"Points in space lying along the path defined by the contour are considered to be part of the ROI" (PS3.3 C.8.8.6.3). A
pixel is judged by its centre. Programs that draw along pixel edges never touch a centre; programs that draw through
the centres of the outermost pixels (OpenCV's contours, so rt-utils and others) mean these pixels to belong to the
structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = 1e-4
"""Pixels: tolerance for contours without rounding, and the last digit that counts. Centres beside a straight line
between two centres or corners are 1/2L away at least, L its length in pixels: more than that for L up to 5000."""
_DECIMALS = 4


@dataclass(frozen=True, eq=False)
class FilledPolygon:
    """The pixels of one contour, in the part of the picture that it reaches.

    Attributes:
        window: the part: slices along i and j.
        inside: pixels of the window that the contour encloses by the even-odd rule and that do not lie on it.
        path: pixels of the window whose centres lie on the contour.
        twice: pixels that it goes round an even number of times, the same way; they are not among ``inside``.
    """

    window: tuple[slice, slice]
    inside: NDArray[np.bool_]
    path: NDArray[np.bool_]
    twice: NDArray[np.bool_]


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int], tolerance: float = EXACT) -> FilledPolygon:
    """Fill a contour, closed by an edge from its last point to its first.

    A pixel is inside when a ray from its centre crosses the contour an odd number of times, so that what a keyhole
    (PS3.3 C.8.8.6.3) cuts out is outside whichever way it is walked round. A contour without an area (one point, a
    line) encloses nothing, and the centres on it are its pixels all the same.

    Args:
        points: (N, 2), in pixels; pixel (i, j) has its centre at exactly (i, j).
        shape: pixels along i and j.
        tolerance: pixels; centres that are nearer to the contour than this lie on it. Below 0.5.
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
    """How many times the edges go round each pixel, signed; odd exactly where a ray crosses an odd number of them."""
    width, height = size
    # Every edge runs upwards in j, so that the same edge gives the same crossings whichever contour it belongs to.
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
    """The pixels whose centres are at most ``tolerance`` away from an edge."""
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
    """Distance of points (..., 2) from edges that begin at ``start`` and reach as far as ``along`` (both (..., 2))."""
    away = points - start
    length = (along**2).sum(axis=-1)
    share = np.divide((away * along).sum(axis=-1), length, out=np.zeros(away.shape[:-1]), where=length != 0)
    rest = away - np.clip(share, 0, 1)[..., None] * along
    return np.asarray(np.hypot(rest[..., 0], rest[..., 1]))


def expand_ranges(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers from each ``first`` to before its ``last``, and beside each the index of its range."""
    count = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(count)), count)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
