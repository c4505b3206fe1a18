"""Determines the relation of two closed contours in one plane: apart, one in the other, crossing, or the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.polygons import distance_to_edge, expand_ranges

ContourRelation = Literal["apart", "inside", "around", "crossing", "same"]

_SLACK = 1e-9  # share of an edge: a crossing at the point where two edges meet must not be missed
_AT_ONCE = 2**21  # pairs of a point and an edge that are processed at once: some ten megabytes per array


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges from ``start`` to ``start + along``, both (N, 2)."""

    start: NDArray[np.float64]
    along: NDArray[np.float64]


def contour_relation(a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float) -> ContourRelation:
    """Return the relation of contour ``a`` to ``b``; contours may touch or share edges without crossing.

    Args:
        a: (N, 2) points.
        b: (M, 2) points.
        tolerance: Distance in the unit of the points; parts nearer to the other contour than this lie on it.

    Returns:
        "inside" if ``a`` lies as a whole in the area of ``b`` (its edge included), "around" if ``b`` lies so in ``a``,
        "apart" if neither does, "crossing" if a part of one is inside the other and a part outside, "same" if each lies
        on the other.
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
    """Determine if a part of contour ``a`` is inside ``b``, and if a part is outside; parts on ``b`` are neither.

    The edges of ``a`` are cut where they meet ``b``, so that each piece is on one side, that of its midpoint.
    Consecutive edges that do not meet ``b`` are on one side, too, which the first of them determines. The search ends
    once both sides were found.
    """
    other = _Edges(b, np.roll(b, -1, axis=0) - b)
    inside = outside = False
    rows = max(1, _AT_ONCE // len(b))
    for k in range(0, len(a), rows):
        start = a[k : k + rows]
        edges = _Edges(start, np.roll(a, -1, axis=0)[k : k + rows] - start)
        for middle in _pieces_beside(edges, other, tolerance):
            for m in range(0, len(middle), rows):
                within = _enclosed(middle[m : m + rows, None], other)
                inside, outside = inside or bool(within.any()), outside or not bool(within.all())
                if inside and outside:
                    return True, True
    return inside, outside


def _pieces_beside(edges: _Edges, other: _Edges, tolerance: float) -> Iterator[NDArray[np.float64]]:
    """Yield the midpoints of pieces of ``edges`` that do not lie on ``other``, in portions.

    A run of edges that do not meet ``other`` gives a single midpoint.
    """
    mine, met = _meeting(edges, other, tolerance)
    edge, middle = _pieces(edges, mine, _Edges(other.start[met], other.along[met]), tolerance)
    meets = np.zeros(len(edges.start), dtype=bool)
    meets[mine] = True
    yield middle[~meets[edge] & (meets[edge - 1] | (edge == 0))]
    edge, middle = edge[meets[edge]], middle[meets[edge]]
    first, last = np.searchsorted(mine, edge), np.searchsorted(mine, edge + 1)  # the pairs of each piece's edge
    portion = np.cumsum(last - first) // _AT_ONCE
    for part in np.split(np.arange(len(edge)), np.flatnonzero(np.diff(portion)) + 1):
        piece, pair = expand_ranges(first[part], last[part])
        near = np.zeros(len(part), dtype=bool)
        away = distance_to_edge(middle[part][piece], other.start[met[pair]], other.along[met[pair]])
        near[piece[away <= tolerance]] = True
        yield middle[part][~near]


def _meeting(edges: _Edges, other: _Edges, tolerance: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of pairs of edges whose bounding boxes meet."""
    ends, other_ends = edges.start + edges.along, other.start + other.along
    low, high = np.minimum(edges.start, ends) - tolerance, np.maximum(edges.start, ends) + tolerance
    other_low, other_high = np.minimum(other.start, other_ends), np.maximum(other.start, other_ends)
    meet = np.ones((len(low), len(other_low)), dtype=bool)
    for axis in (0, 1):
        meet &= low[:, None, axis] <= other_high[None, :, axis]
        meet &= high[:, None, axis] >= other_low[None, :, axis]
    pairs = np.argwhere(meet)
    return pairs[:, 0], pairs[:, 1]


def _pieces(
    edges: _Edges, mine: NDArray[np.int64], met: _Edges, tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cut each edge ``mine`` where it meets the edge ``met`` of its pair; return each piece's edge and midpoint."""
    a, d = edges.start[mine], edges.along[mine]
    away = met.start - a
    slope = _cross(d, met.along)
    length = (d**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing, there = _cross(away, met.along) / slope, _cross(away, d) / slope
        crossing[~((there >= -_SLACK) & (there <= 1 + _SLACK))] = np.nan
        cuts = [crossing]
        for ends in (away, away + met.along):  # the other edge begins or ends on this one
            share = (ends * d).sum(axis=1) / length
            share[distance_to_edge(a + ends, a, d) > tolerance] = np.nan
            cuts.append(share)
    edge, share = np.concatenate([mine, mine, mine]), np.concatenate(cuts)
    kept = (share > 0) & (share < 1)
    every = np.arange(len(edges.start))
    edge = np.concatenate([every, every, edge[kept]])
    share = np.concatenate([np.zeros(len(every)), np.ones(len(every)), share[kept]])
    order = np.lexsort((share, edge))
    edge, share = edge[order], share[order]
    within = edge[1:] == edge[:-1]
    half, edge = ((share[1:] + share[:-1]) / 2)[within], edge[1:][within]
    return edge, edges.start[edge] + half[:, None] * edges.along[edge]


def _enclosed(points: NDArray[np.float64], contour: _Edges) -> NDArray[np.bool_]:
    """Return True for points (K, 1, 2) that are inside a contour by the even-odd rule."""
    y, low, high = points[..., 1], contour.start[:, 1], contour.start[:, 1] + contour.along[:, 1]
    over = (low <= y) != (high <= y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = contour.start[:, 0] + (y - low) * contour.along[:, 0] / contour.along[:, 1]
    return np.asarray((over & (crossing > points[..., 0])).sum(axis=1) % 2 == 1)


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
