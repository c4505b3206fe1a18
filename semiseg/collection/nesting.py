"""How two closed contours in one plane lie to each other: apart, one in the other, crossing, or the same."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.polygons import distance_to_edge, ranges

Relation = Literal["apart", "inside", "around", "crossing", "same"]

_AT_ONCE = 2**21  # pairs of a point and an edge that are looked at in one go: some ten megabytes an array


def relation(a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float) -> Relation:
    """How contour ``a`` lies to ``b``; contours may touch or share edges without crossing.

    Args:
        a: (N, 2).
        b: (M, 2).
        tolerance: in the unit of the points; parts that are nearer to the other contour than this lie on it.

    Returns:
        "inside" and "around" where one lies in the area of the other as a whole (its edge included), "apart" where
        neither does, "crossing" where a part of one is inside the other and a part outside, "same" where each lies on
        the other.
    """
    if (a.max(axis=0) + tolerance < b.min(axis=0)).any() or (b.max(axis=0) + tolerance < a.min(axis=0)).any():
        return "apart"
    a_in, a_out = _parts(a, b, tolerance)
    b_in, b_out = _parts(b, a, tolerance)
    if (a_in and a_out) or (b_in and b_out):
        return "crossing"
    if not (a_in or a_out or b_in or b_out):
        return "same"
    if a_in:
        return "inside"
    return "around" if b_in else "apart"


def _parts(a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float) -> tuple[bool, bool]:
    """Whether a part of contour ``a`` is inside ``b``, and whether one is outside; what lies on ``b`` is neither.

    The edges of ``a`` are cut where they meet ``b``, so that each piece is on one side, and its middle tells which.
    Edges that follow each other without meeting ``b`` are on one side, too, and the first of them tells it for all.
    """
    start, along = a, np.roll(a, -1, axis=0) - a
    b_start, b_along = b, np.roll(b, -1, axis=0) - b
    mine, other = _meeting(start, along, b_start, b_along, tolerance)
    edge, middle = _pieces(start, along, mine, b_start[other], b_along[other])
    meets = np.zeros(len(a), dtype=bool)
    meets[mine] = True
    near = np.zeros(len(middle), dtype=bool)
    bounds = np.searchsorted(mine, [edge, edge + 1])  # the edges of b that the edge of each piece meets
    piece, pair = ranges(bounds[0], bounds[1])
    met = other[pair]
    near[piece[distance_to_edge(middle[piece], b_start[met], b_along[met]) <= tolerance]] = True
    first = ~meets[edge] & (meets[edge - 1] | (edge == 0))
    asked = middle[(meets[edge] & ~near) | first]
    inside = np.zeros(len(asked), dtype=bool)
    rows = max(1, _AT_ONCE // len(b))
    for k in range(0, len(asked), rows):
        inside[k : k + rows] = _enclosed(asked[k : k + rows, None], b_start, b_along)
    return bool(inside.any()), bool((~inside).any())


def _meeting(
    start: NDArray[np.float64],
    along: NDArray[np.float64],
    b_start: NDArray[np.float64],
    b_along: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of edges whose bounding boxes meet."""
    low, high = np.minimum(start, start + along) - tolerance, np.maximum(start, start + along) + tolerance
    b_low, b_high = np.minimum(b_start, b_start + b_along), np.maximum(b_start, b_start + b_along)
    found: list[NDArray[np.int64]] = []
    rows = max(1, _AT_ONCE // len(b_start))
    for k in range(0, len(start), rows):
        part = slice(k, k + rows)
        meet = np.ones((len(low[part]), len(b_start)), dtype=bool)
        for axis in (0, 1):
            meet &= low[part, None, axis] <= b_high[None, :, axis]
            meet &= high[part, None, axis] >= b_low[None, :, axis]
        found.append(np.argwhere(meet) + np.array([k, 0]))
    pairs = np.concatenate(found)
    return pairs[:, 0], pairs[:, 1]


def _pieces(
    start: NDArray[np.float64],
    along: NDArray[np.float64],
    mine: NDArray[np.int64],
    b_start: NDArray[np.float64],
    b_along: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pieces of all edges, cut where edge ``mine`` meets the other edge of its pair: their edges and middles."""
    a, d = start[mine], along[mine]
    away = b_start - a
    slope = d[:, 0] * b_along[:, 1] - d[:, 1] * b_along[:, 0]
    length = (d**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cuts = [
            (away[:, 0] * b_along[:, 1] - away[:, 1] * b_along[:, 0]) / slope,
            (away * d).sum(axis=1) / length,  # where the other edge begins, should it run along this one
            ((away + b_along) * d).sum(axis=1) / length,
        ]
    edge, share = np.concatenate([mine, mine, mine]), np.concatenate(cuts)
    kept = (share > 0) & (share < 1)
    every = np.arange(len(start))
    edge = np.concatenate([every, every, edge[kept]])
    share = np.concatenate([np.zeros(len(start)), np.ones(len(start)), share[kept]])
    order = np.lexsort((share, edge))
    edge, share = edge[order], share[order]
    within = edge[1:] == edge[:-1]
    half, edge = ((share[1:] + share[:-1]) / 2)[within], edge[1:][within]
    return edge, start[edge] + half[:, None] * along[edge]


def _enclosed(points: NDArray[np.float64], start: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (K, 1, 2) are inside a contour by the even-odd rule."""
    y, low, high = points[..., 1], start[:, 1], start[:, 1] + along[:, 1]
    over = (low <= y) != (high <= y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = start[:, 0] + (y - low) * along[:, 0] / along[:, 1]
    return np.asarray((over & (crossing > points[..., 0])).sum(axis=1) % 2 == 1)
