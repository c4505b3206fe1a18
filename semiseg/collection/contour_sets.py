"""The area of several closed contours that one structure has on one slice.

What the standard says (PS3.3 C.8.8.6.3): a hole is either cut into its contour by a keyhole, or the contours are of
type CLOSEDPLANAR_XOR and combined by exclusive or, in whatever order. It says nothing about several contours of type
CLOSED_PLANAR in one place. What is read here:

- One CLOSED_PLANAR contour inside another is a hole, one inside that an island, and so on, also where it touches the
  outer one or shares edges with it. Most planning systems write holes so, since the XOR type is young; rt-utils,
  platipy, dcmrtstruct2nii and SlicerRT read them so.
- Contours that cross or repeat each other are united: they cannot be holes. Drawing programs leave them where a reader
  drew a structure in several strokes, and a file that was merged holds contours twice. Programs that apply exclusive
  or to everything lose the part that both enclose.
- Contours that are united count as one contour for what lies inside them or around them.
- Where one contour of a slice is of type CLOSEDPLANAR_XOR, all of them are combined by exclusive or.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.nesting import Relation, relation
from semiseg.collection.polygons import EXACT, FilledPolygon, fill_polygon

Convention = Literal["hole", "united", "cancelled", "mixed", "twice"]
"""What the standard leaves to the reader: a contour in another was a "hole"; crossing or repeated ones were "united",
or "cancelled" each other by exclusive or; both types were "mixed"; a contour went round a part "twice"."""
_SAME = 0.01  # pixels: contours that are nearer to each other than this all along are one contour


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed contour on a slice.

    Attributes:
        points: (N, 2), in pixels; pixel (i, j) has its centre at exactly (i, j). At least one.
        tolerance: pixels; what the rounding of its coordinates may have moved it by.
        exclusive: it is of type CLOSEDPLANAR_XOR.
    """

    points: NDArray[np.float64]
    tolerance: float = EXACT
    exclusive: bool = False

    @property
    def area(self) -> float:
        """Area in pixels; what it goes round twice counts twice."""
        (x, y), (x1, y1) = self.points.T, np.roll(self.points, -1, axis=0).T
        return abs(float((x * y1 - x1 * y).sum())) / 2


@dataclass(frozen=True, eq=False)
class Area:
    """The pixels (X, Y) of a structure on one slice, and what was a matter of convention in reading them."""

    mask: NDArray[np.bool_]
    conventions: frozenset[Convention] = field(default_factory=frozenset)


def area_of(contours: Sequence[Contour], shape: tuple[int, int]) -> Area:
    """The pixels that ``contours`` enclose together, as the module says; centres on an outline belong to it.

    Args:
        contours: closed contours in one plane.
        shape: pixels along i and j.
    """
    filled = [fill_polygon(c.points, shape, c.tolerance) for c in contours]
    relations = {
        (a, b): relation(contours[a].points, contours[b].points, _tolerance(contours[a], contours[b]))
        for a, b in _near_pairs(contours)
    }
    told: set[Convention] = {"twice"} if any(one.twice.any() for one in filled) else set()
    if any(c.exclusive for c in contours):
        groups = _grouped(len(contours), relations, ("same",))
        told |= {"mixed"} if not all(c.exclusive for c in contours) else set()
        told |= {"cancelled"} if any(len(group) > 1 for group in groups) else set()
        groups = [group[:1] for group in groups if len(group) % 2]
    else:
        groups = _grouped(len(contours), relations, ("same", "crossing"))
        told |= {"united"} if any(len(group) > 1 for group in groups) else set()
        group_of = {k: number for number, group in enumerate(groups) for k in group}
        inner = {
            a if how == "inside" else b
            for (a, b), how in relations.items()
            if how in ("inside", "around") and group_of[a] != group_of[b]
        }
        told |= {"hole"} if any(contours[k].area > 0 for k in inner) else set()
    inside, edges = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for group in groups:
        _add([filled[k] for k in group], inside, edges)
    return Area(inside | edges, frozenset(told))


def _near_pairs(contours: Sequence[Contour]) -> list[tuple[int, int]]:
    """Pairs of contours whose bounding boxes meet; spongy bone has hundreds of contours on a slice."""
    if not contours:
        return []
    reach = np.array([max(_SAME, c.tolerance) for c in contours])[:, None]
    low = np.array([c.points.min(axis=0) for c in contours]) - reach
    high = np.array([c.points.max(axis=0) for c in contours]) + reach
    meet = (low[:, None] <= high[None]).all(axis=2) & (high[:, None] >= low[None]).all(axis=2)
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(meet, 1))]


def _tolerance(a: Contour, b: Contour) -> float:
    return max(_SAME, a.tolerance, b.tolerance)


def _grouped(count: int, relations: dict[tuple[int, int], Relation], joining: tuple[Relation, ...]) -> list[list[int]]:
    """The contours in groups; those of a ``joining`` relation are in one, directly or through others."""
    group_of = list(range(count))
    for (a, b), how in relations.items():
        if how in joining and group_of[a] != group_of[b]:
            old, new = group_of[b], group_of[a]
            group_of = [new if group == old else group for group in group_of]
    return [[k for k in range(count) if group_of[k] == group] for group in dict.fromkeys(group_of)]


def _add(members: list[FilledPolygon], inside: NDArray[np.bool_], edges: NDArray[np.bool_]) -> None:
    """Combine the union of ``members`` by exclusive or with what is ``inside``, and add its ``edges``."""
    if len(members) == 1:
        inside[members[0].window] ^= members[0].inside
        edges[members[0].window] |= members[0].path
        return
    united, path = np.zeros_like(inside), np.zeros_like(edges)
    for one in members:
        united[one.window] |= one.inside
        path[one.window] |= one.path
    # What lies within the union is no edge of it: the path of one contour does not cut through another one's hole.
    inside ^= united
    edges |= path & ~united
