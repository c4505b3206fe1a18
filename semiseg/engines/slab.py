"""The part of a volume that windows are being blended into.

Windows are run row by row along one axis (``outer``), and within a row band by band along a second (``middle``); within
a band they follow one another along the third. What no later window touches is finished and its memory used again.

Of a row that lies behind the present band, only the planes that the next row touches again are needed; of what lies
before the band, only those that the last row touched. Both are ``carried``, one array over the whole cross-section; the
other planes of the row exist for the present band alone and are ``fresh``. With half overlap that is half a row and a
band, for any number of slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from math import prod
from typing import Any, Literal

Activation = Literal["none", "softmax", "sigmoid"]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class SlabPlan:
    """What has to be held at once.

    Attributes:
        shape, window: voxels of the volume and of a window.
        outer, middle: the axes along which rows and bands follow one another.
        carried: planes along ``outer`` that a row may share with the next.
    """

    shape: Triple
    window: Triple
    outer: int
    middle: int
    carried: int

    @property
    def carried_shape(self) -> Triple:
        """Voxels that are held over the whole cross-section."""
        return _with(self.shape, {self.outer: self.carried})

    @property
    def fresh_shape(self) -> Triple:
        """Voxels that are held for one band."""
        return _with(
            self.shape, {self.outer: self.window[self.outer] - self.carried, self.middle: self.window[self.middle]}
        )

    @property
    def voxels(self) -> int:
        """Voxels that are held in all."""
        return prod(self.carried_shape) + prod(self.fresh_shape)


def plan_slab(shape: Triple, window: Triple, starts: Sequence[Sequence[int]]) -> SlabPlan:
    """The order of the axes that holds the fewest voxels, for windows that lie at a grid of ``starts``."""
    plans = []
    for outer, middle, _ in permutations(range(3)):
        # Rows that do not meet (no overlap) share no plane.
        shared = [window[outer] - (after - before) for before, after in pairwise(starts[outer])]
        plans.append(SlabPlan(shape, window, outer, middle, max([0, *shared])))
    return min(plans, key=lambda plan: plan.voxels)


class Slab:
    """Sums (K, ...) of the windows so far, in the arrays of NumPy or of torch."""

    def __init__(self, plan: SlabPlan, outputs: int, activation: Activation, zeros: Callable[[tuple[int, ...]], Any]):
        """Start empty.

        Args:
            plan: what to hold.
            outputs: K.
            activation: what is applied to a window's logits before they are added.
            zeros: makes an array of a shape.
        """
        self.plan = plan
        self.activation = activation
        self._carried = zeros((outputs, *plan.carried_shape))
        self._fresh = zeros((outputs, *plan.fresh_shape))
        self._band = 0

    @property
    def voxels(self) -> int:
        """Voxels held, times K."""
        return int(prod(self._carried.shape) + prod(self._fresh.shape))

    def parts(self, values: Any, start: Triple) -> list[tuple[Any, Any, tuple[slice, ...]]]:
        """Where a window's values belong.

        Args:
            values: (..., *window).
            start: of the window, in the volume; it has to lie in the present row and band.

        Returns:
            Pairs of a view (K, ...) of this slab and the part of ``values`` that belongs there, with its place.
        """
        plan = self.plan
        split = plan.carried
        ends = [at + side for at, side in zip(start, plan.window, strict=True)]
        places = {axis: slice(at, end) for axis, (at, end) in enumerate(zip(start, ends, strict=True))}
        band = slice(start[plan.middle] - self._band, ends[plan.middle] - self._band)
        lower, upper = _cut({plan.outer: slice(0, split)}), _cut({plan.outer: slice(split, None)})
        found = []
        if split:
            here = self._carried[_cut(places | {plan.outer: slice(None)})]
            found.append((here, values[lower], lower))
        if split < plan.window[plan.outer]:
            here = self._fresh[_cut(places | {plan.outer: slice(None), plan.middle: band})]
            found.append((here, values[upper], upper))
        return found

    def completed(self, planes: int, rows: int) -> list[Any]:
        """The first ``planes`` planes of the first ``rows`` rows of the present band: views (K, ...) that follow one
        another along the outer axis.
        """
        plan = self.plan
        found = []
        if plan.carried:
            here = {plan.outer: slice(0, planes), plan.middle: self._rows(rows)}
            found.append(self._carried[_cut(here)])
        if planes > plan.carried:
            there = {plan.outer: slice(0, planes - plan.carried), plan.middle: slice(0, rows)}
            found.append(self._fresh[_cut(there)])
        return found

    def advance(self, planes: int, rows: int) -> None:
        """Move on by ``rows`` rows of the present band, of which ``planes`` planes are finished, and forget these."""
        plan = self.plan
        left = plan.window[plan.outer] - planes  # planes that the next row touches
        old = max(0, plan.carried - planes)  # those of them that are carried already
        shift_along_axis(self._carried, 1 + plan.outer, planes, old, _cut({plan.middle: self._rows(rows)}))
        if left > old:
            source = _cut({plan.outer: slice(planes - plan.carried + old, None), plan.middle: slice(0, rows)})
            self._carried[_cut({plan.outer: slice(old, left), plan.middle: self._rows(rows)})] = self._fresh[source]
        self._carried[_cut({plan.outer: slice(left, None), plan.middle: self._rows(rows)})] = 0
        side = plan.window[plan.middle]
        shift_along_axis(self._fresh, 1 + plan.middle, rows, side - rows, _cut({}))
        self._fresh[_cut({plan.middle: slice(side - rows, None)})] = 0
        self._band += rows
        if self._band == plan.shape[plan.middle]:
            self._band = 0

    def _rows(self, rows: int) -> slice:
        return slice(self._band, self._band + rows)


def shift_along_axis(array: Any, axis: int, by: int, count: int, within: tuple[slice, ...]) -> None:
    """Move ``count`` entries along ``axis`` down by ``by`` places, a block at a time, so that no copy reads its own."""
    for first in range(0, count, by):
        last = min(first + by, count)
        target, source = list(within), list(within)
        target[axis], source[axis] = slice(first, last), slice(first + by, last + by)
        array[tuple(target)] = array[tuple(source)]


def _with(triple: Triple, changes: dict[int, int]) -> Triple:
    x, y, z = (changes.get(axis, side) for axis, side in enumerate(triple))
    return (x, y, z)


def _cut(places: dict[int, slice]) -> tuple[slice, ...]:
    """An index of (K, X, Y, Z) that takes ``places`` along some of the three axes, and all else."""
    return (slice(None), *(places.get(axis, slice(None)) for axis in range(3)))
