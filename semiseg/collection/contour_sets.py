"""Combines several closed contours of one structure on one slice into an area.

According to the standard (PS3.3 C.8.8.6.3), a hole is either cut into its contour by a keyhole, or the contours are of
type CLOSEDPLANAR_XOR and are combined by exclusive or, in any order. It does not define several contours of type
CLOSED_PLANAR in one place. The conventions of this module are:

- A CLOSED_PLANAR contour inside another is a hole, a contour inside the hole an island, and so on, also if it touches
  the outer one or shares edges with it. The XOR type is new, and programs write holes as plain contours: rt-utils does
  so, and rt-utils, platipy and dcmrtstruct2nii read them in this way.
- Contours that cross or repeat each other are united: they cannot be holes. A structure that was drawn in several
  strokes has contours that cross, and a merged file has contours twice. Programs that apply exclusive or to all
  contours lose the part that both enclose.
- United contours count as one contour with respect to contours inside or around them.
- A contour that encloses no pixel's centre (a line, a point) cuts no hole; the centres on it belong to the structure.
- If one contour of a slice is of type CLOSEDPLANAR_XOR, all of them are combined by exclusive or.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.contour_relations import ContourRelation, contour_relation
from semiseg.collection.polygons import EXACT, FilledPolygon, fill_polygon

ContourConvention = Literal["hole", "united", "cancelled", "mixed", "twice"]
"""Convention used where the standard gives no rule: a contour in another was a "hole"; crossing or repeated ones were
"united", or "cancelled" each other by exclusive or; both types were "mixed"; a contour enclosed a part "twice"."""
_SAME = 0.01  # pixels: contours that are nowhere further apart than this are one contour


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed contour on a slice.

    Attributes:
        points: (N, 2) points in pixels, at least one; pixel (i, j) has its centre at exactly (i, j).
        tolerance: Largest displacement by the rounding of its coordinates, in pixels.
        exclusive: True if it is of type CLOSEDPLANAR_XOR.
    """

    points: NDArray[np.float64]
    tolerance: float = EXACT
    exclusive: bool = False


@dataclass(frozen=True, eq=False)
class FilledArea:
    """The pixels (X, Y) of a structure on one slice, and the conventions that were used in reading them."""

    mask: NDArray[np.bool_]
    conventions: frozenset[ContourConvention] = field(default_factory=frozenset)


def fill_contours(contours: Sequence[Contour], shape: tuple[int, int]) -> FilledArea:
    """Fill the pixels that ``contours`` enclose together, by the conventions of this module.

    Pixels whose centres lie on an outline belong to the structure.

    Args:
        contours: Closed contours in one plane.
        shape: Number of pixels along i and j.
    """
    filled = [fill_polygon(c.points, shape, c.tolerance) for c in contours]
    told: set[ContourConvention] = {"twice"} if any(one.twice.any() for one in filled) else set()
    inside, edges = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for one in filled:
        if not one.inside.any():  # a line or a point, which cuts no hole and is not united with others
            edges[one.window] |= one.path
    solid = [k for k, one in enumerate(filled) if one.inside.any()]
    if any(c.exclusive for c in contours):
        groups, _ = _grouped([contours[k] for k in solid], ("same",))
        told |= {"mixed"} if not all(c.exclusive for c in contours) else set()
        told |= {"cancelled"} if any(len(group) > 1 for group in groups) else set()
        groups = [group[:1] for group in groups if len(group) % 2]
    else:
        groups, nested = _grouped([contours[k] for k in solid], ("same", "crossing"))
        told |= {"united"} if any(len(group) > 1 for group in groups) else set()
        told |= {"hole"} if nested else set()
    for group in groups:
        _add([filled[solid[k]] for k in group], inside, edges)
    return FilledArea(inside | edges, frozenset(told))


def _grouped(contours: Sequence[Contour], joining: tuple[ContourRelation, ...]) -> tuple[list[list[int]], bool]:
    """Group contours; those with a ``joining`` relation, directly or through others, are in one group.

    Returns:
        The indices of the contours of each group, and True if a contour lies inside one of another group.
    """
    group_of = list(range(len(contours)))
    nested: list[tuple[int, int]] = []
    for a, b in _near_pairs(contours):
        if group_of[a] == group_of[b]:
            continue
        how = contour_relation(contours[a].points, contours[b].points, _tolerance(contours[a], contours[b]))
        if how in joining:
            old, new = group_of[b], group_of[a]
            group_of = [new if group == old else group for group in group_of]
        elif how in ("inside", "around"):
            nested.append((a, b))
    groups = [[k for k in range(len(contours)) if group_of[k] == group] for group in dict.fromkeys(group_of)]
    return groups, any(group_of[a] != group_of[b] for a, b in nested)


def _near_pairs(contours: Sequence[Contour]) -> list[tuple[int, int]]:
    """Return the pairs of contours whose bounding boxes meet; spongy bone has hundreds of contours on a slice."""
    if not contours:
        return []
    reach = np.array([max(_SAME, c.tolerance) for c in contours])[:, None]
    low = np.array([c.points.min(axis=0) for c in contours]) - reach
    high = np.array([c.points.max(axis=0) for c in contours]) + reach
    meet = (low[:, None] <= high[None]).all(axis=2) & (high[:, None] >= low[None]).all(axis=2)
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(meet, 1))]


def _tolerance(a: Contour, b: Contour) -> float:
    return max(_SAME, a.tolerance, b.tolerance)


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
    # Paths inside the union are not edges of it, so they do not cut through another contour's hole.
    inside ^= united
    edges |= path & ~united
