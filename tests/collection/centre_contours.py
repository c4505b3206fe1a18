"""Contours through the centres of the outermost pixels of a mask, as OpenCV's findContours makes them for rt-utils.

Border following after Suzuki and Abe (1985): an outer contour around each 8-connected region, and one around each
4-connected hole, both along pixels of the region.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_AROUND = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)]  # one turn round a pixel
Pixel = tuple[int, int]


def centre_contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed contours (N, 2) in pixel indices; a single pixel is one point, a line of pixels goes there and back."""
    padded = np.pad(mask, 1)
    regions, count = ndimage.label(padded, structure=np.ones((3, 3)))
    starts: list[tuple[Pixel, Pixel]] = []
    for number in range(1, count + 1):
        i, j = np.argwhere(regions == number)[0].tolist()
        starts.append(((i, j), (i, j - 1)))
    holes, count = ndimage.label(~padded)
    for number in range(1, count + 1):
        i, j = np.argwhere(holes == number)[0].tolist()
        if holes[0, 0] != number:
            starts.append(((i, j - 1), (i, j)))
    return [np.array(_follow_border(padded, *start), dtype=np.float64) - 1 for start in starts]


def _follow_border(mask: NDArray[np.bool_], start: Pixel, outside: Pixel) -> list[Pixel]:
    """The border pixels from ``start`` on, with ``outside`` beside it."""
    first = _next_border_pixel(mask, start, outside, 1)
    if first is None:
        return [start]
    out, before, at = [start], first, start
    while True:
        after = _next_border_pixel(mask, at, before, -1)
        assert after is not None
        if after == start and at == first:
            return out
        before, at = at, after
        out.append(at)


def _next_border_pixel(mask: NDArray[np.bool_], at: Pixel, since: Pixel, way: int) -> Pixel | None:
    """The next pixel of the mask round ``at``, beginning behind ``since``."""
    k = _AROUND.index((since[0] - at[0], since[1] - at[1]))
    for step in range(1, 9):
        i, j = _AROUND[(k + way * step) % 8]
        if mask[at[0] + i, at[1] + j]:
            return (at[0] + i, at[1] + j)
    return None


def simplify_contour(contour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Only the points at which the way turns (CHAIN_APPROX_SIMPLE)."""
    before, after = contour - np.roll(contour, 1, axis=0), np.roll(contour, -1, axis=0) - contour
    turns = (before != after).any(axis=1)
    return contour[turns] if turns.any() else contour[:1]
