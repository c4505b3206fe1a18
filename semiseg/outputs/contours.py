"""Polygons around the pixels of a mask, slightly inside the pixels' edges, so that filling them restores the mask.

Readers fill polygons in one of two ways. Some take the pixels whose centres lie inside. Others round every corner to a
whole pixel and include the boundary; a corner exactly between two pixels would then be rounded to either of them, and
the structure would grow by up to a pixel at each side. A corner that lies ``INSET`` inside is rounded to the pixel that
belongs to the structure, so both ways give the same mask (figures: docs/results/readers_of_results).

A hole is joined to the polygon around it by a channel of zero width (the keyhole of PS3.3 C.8.8.6.3), so that every
region is one closed curve, also for readers that do not support holes.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Corner = tuple[int, int]
Loop = list[Corner]

PARTS = 200
"""Number of parts of a pixel; the coordinates of corners that were moved inside are integers in this unit."""
INSET = 1 / PARTS
"""Distance of a polygon from the pixels' edges, in pixels: far above the rounding of coordinates, far below a pixel."""


def mask_contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return closed polygons (N, 2) around the regions of a mask (X, Y), in pixel indices (centres are integers).

    Every corner lies ``INSET`` inside the edges of the region's pixels along both axes. Regions are 4-connected. The
    last point connects to the first, which is not repeated.
    """
    regions, count = ndimage.label(mask)
    out = []
    for number, (x, y) in enumerate(ndimage.find_objects(regions), start=1):
        loops = [_moved_inside(loop) for loop in _loops(regions[x, y] == number)]
        outer, *holes = sorted(loops, key=_area, reverse=True)
        for hole in sorted(holes, key=min):  # so that the holes before it are already joined
            outer = _joined(outer, hole)
        out.append(np.array(outer, dtype=np.float64) / PARTS - 0.5 + (x.start, y.start))
    assert len(out) == count
    return out


def _loops(region: NDArray[np.bool_]) -> list[Loop]:
    """Return the corners around a region and its holes, without those on a straight line.

    The edges of all pixels have the same direction of rotation, and edges that two pixels share cancel.
    """
    edges: set[tuple[Corner, Corner]] = set()
    for i, j in np.argwhere(region & ~ndimage.binary_erosion(region)).tolist():
        corners = ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1))
        beside = ((i, j - 1), (i + 1, j), (i, j + 1), (i - 1, j))
        for k, (a, b) in enumerate(beside):
            inside = 0 <= a < region.shape[0] and 0 <= b < region.shape[1] and region[a, b]
            if not inside:
                edges.add((corners[k], corners[(k + 1) % 4]))
    following: dict[Corner, list[Corner]] = defaultdict(list)
    for start, end in sorted(edges):
        following[start].append(end)
    loops = []
    while following:
        first = next(iter(following))
        loop: Loop = [first]
        point = _next(following, first, None)
        while point != first:
            before = loop[-1]
            loop.append(point)
            point = _next(following, point, before)
        loops.append(_straightened(loop))
    return loops


def _next(following: dict[Corner, list[Corner]], at: Corner, before: Corner | None) -> Corner:
    """Return the next corner; if two pixels meet at a corner only, stay on the pixel of the previous edge."""
    ends = following[at]
    chosen = ends[0]
    if len(ends) > 1 and before is not None:
        came = (at[0] - before[0], at[1] - before[1])
        left = (-came[1], came[0])
        chosen = next((end for end in ends if (end[0] - at[0], end[1] - at[1]) == left), ends[0])
    ends.remove(chosen)
    if not ends:
        del following[at]
    return chosen


def _straightened(loop: Loop) -> Loop:
    """Remove the corners on straight lines."""
    count = len(loop)
    return [
        loop[k]
        for k in range(count)
        if (loop[k][0] - loop[k - 1][0], loop[k][1] - loop[k - 1][1])
        != (loop[(k + 1) % count][0] - loop[k][0], loop[(k + 1) % count][1] - loop[k][1])
    ]


def _moved_inside(loop: Loop) -> Loop:
    """Return the corners in parts of a pixel, each moved inside by one part across both of its edges.

    The region is on the left of the direction of travel (x to the right, y upwards), also around a hole.
    """
    moved = []
    for (x, y), before, after in zip(loop, (loop[-1], *loop[:-1]), (*loop[1:], loop[0]), strict=True):
        came, goes = (x - before[0], y - before[1]), (after[0] - x, after[1] - y)
        across = [(-_sign(dy), _sign(dx)) for dx, dy in (came, goes)]
        moved.append((PARTS * x + sum(a for a, _ in across), PARTS * y + sum(b for _, b in across)))
    return moved


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _area(loop: Loop) -> float:
    """Signed: positive around a region, negative around a hole."""
    points = np.array(loop, dtype=np.float64)
    x, y = points.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _joined(outer: Loop, hole: Loop) -> Loop:
    """Join a hole to the outer curve by a straight channel to the hole's first corner and back.

    The channel runs along x, close to the edge of a row of pixels. If it passed through a pixel's centre, it would be
    undefined on which side that pixel is.
    """
    x, y = first = min(hole)
    start = np.array(outer)
    ends = np.roll(start, -1, axis=0)
    low, high = np.minimum(start, ends), np.maximum(start, ends)
    before = (low[:, 1] <= y) & (y <= high[:, 1]) & (high[:, 0] < x)
    side = int(np.where(before, high[:, 0], -1).argmax())
    bridge = (int(high[side, 0]), y)
    turn = hole.index(first)
    curve = [*outer[: side + 1], bridge, *hole[turn:], *hole[: turn + 1], bridge, *outer[side + 1 :]]
    return [point for k, point in enumerate(curve) if point != curve[k - 1]]  # the channel may begin at a corner
