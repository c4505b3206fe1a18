"""Which pixels lie inside closed contours, by the even-odd rule at pixel centres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SNAP = 4  # decimals of a pixel: rounding of coordinates must not decide about centres that lie on a contour


def fill_even_odd(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill contours, each closed by an edge from its last point to its first.

    A pixel is inside when a ray from its centre crosses the contours an odd number of times, so that a contour within
    another is a hole, and so is what a keyhole (PS3.3 C.8.8.6.3) cuts out. A centre on a contour's left or upper edge
    is inside and one on its right or lower edge outside: contours that share an edge neither overlap nor leave a gap.

    Args:
        contours: each (N, 2), in pixels; pixel (i, j) has its centre at exactly (i, j).
        shape: pixels along i and j.

    Returns:
        Mask of ``shape``.
    """
    width, height = shape
    ends = [np.round(np.asarray(c, dtype=np.float64).reshape(-1, 2), _SNAP) for c in contours if len(c)]
    if not ends:
        return np.zeros(shape, dtype=bool)
    start, end = np.concatenate(ends), np.concatenate([np.roll(points, -1, axis=0) for points in ends])
    # Every edge runs upwards in j, so that the same edge gives the same crossings whichever contour it belongs to.
    turned = start[:, 1] > end[:, 1]
    start[turned], end[turned] = end[turned], start[turned].copy()
    first = np.clip(np.ceil(start[:, 1]), 0, height).astype(np.int64)
    last = np.clip(np.ceil(end[:, 1]), 0, height).astype(np.int64)
    count = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(count)), count)
    j = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    low, high = start[edge], end[edge]
    crossing = low[:, 0] + (j - low[:, 1]) * (high[:, 0] - low[:, 0]) / (high[:, 1] - low[:, 1])
    i = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    toggles = np.zeros((width + 1, height), dtype=np.int64)
    np.add.at(toggles, (i, j), 1)
    return np.asarray(np.cumsum(toggles[:width], axis=0) % 2 == 1)
