"""The part of a volume that is held in memory while windows are blended.

Windows are run row by row along one axis (``outer``), within a row band by band along a second axis (``middle``), and
within a band along the third axis. Voxels that no later window touches are completed, and their memory is reused. For
the planes of the present row, along the outer axis (down) and the middle axis (right), the voxels are held as follows::

                     bands before    present band    bands after
    first planes     completed       carried         carried
    other planes     carried         fresh           not touched yet

The array ``carried`` covers the whole cross-section. From the present band on it contains the planes that the previous
row also touched, and in the bands before it the planes that the next row will touch. The array ``fresh`` contains the
other planes of the present band. With an overlap of one half this is half a row and a band, for any number of slices.
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
    """Sizes of the arrays of a slab.

    Attributes:
        shape: Size of the volume in voxels.
        window: Size of a window in voxels.
        outer: Axis along which rows follow one another.
        middle: Axis along which the bands of a row follow one another.
        carried: Largest number of planes along ``outer`` that a row shares with the next.
    """

    shape: Triple
    window: Triple
    outer: int
    middle: int
    carried: int

    @property
    def carried_shape(self) -> Triple:
        """Shape of the array that is held over the whole cross-section."""
        return _with(self.shape, {self.outer: self.carried})

    @property
    def fresh_shape(self) -> Triple:
        """Shape of the array that is held for one band."""
        return _with(
            self.shape, {self.outer: self.window[self.outer] - self.carried, self.middle: self.window[self.middle]}
        )

    @property
    def voxels(self) -> int:
        """Total number of voxels that are held."""
        return prod(self.carried_shape) + prod(self.fresh_shape)


def plan_slab(shape: Triple, window: Triple, starts: Sequence[Sequence[int]]) -> SlabPlan:
    """Choose the order of the axes that needs the fewest voxels, for windows at a grid of ``starts``."""
    plans = []
    for outer, middle, _ in permutations(range(3)):
        # Rows without overlap share no plane.
        shared = [window[outer] - (after - before) for before, after in pairwise(starts[outer])]
        plans.append(SlabPlan(shape, window, outer, middle, max([0, *shared])))
    return min(plans, key=lambda plan: plan.voxels)


class Slab:
    """Sums (K, ...) of the windows added so far, in NumPy or torch arrays."""

    def __init__(self, plan: SlabPlan, outputs: int, activation: Activation, zeros: Callable[[tuple[int, ...]], Any]):
        """Allocate an empty slab.

        Args:
            plan: Sizes of the arrays.
            outputs: Number of channels K.
            activation: Function that is applied to a window's logits before they are added.
            zeros: Function that returns an array of zeros of a given shape.
        """
        self.plan = plan
        self.activation = activation
        self._carried = zeros((outputs, *plan.carried_shape))
        self._fresh = zeros((outputs, *plan.fresh_shape))
        self._band = 0

    @property
    def voxels(self) -> int:
        """Number of values that are held: voxels times K."""
        return int(prod(self._carried.shape) + prod(self._fresh.shape))

    def parts(self, values: Any, start: Triple) -> list[tuple[Any, Any, tuple[slice, ...]]]:
        """Split a window's values between the arrays of the slab.

        Args:
            values: Values of the window (..., *window).
            start: Start of the window in the volume; it must be in the present row and band.

        Returns:
            For each array: a view (K, ...) of it, the part of ``values`` that belongs there, and the part's index.
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
        """Return the first ``planes`` planes of the first ``rows`` rows of the present band.

        The result is a list of views (K, ...) that follow one another along the outer axis.
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
        """Move on by ``rows`` rows of the present band, and discard their ``planes`` completed planes."""
        plan = self.plan
        left = plan.window[plan.outer] - planes  # planes that the next row touches
        old = max(0, plan.carried - planes)  # number of these planes that are already in `carried`
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
    """Move ``count`` entries along ``axis`` down by ``by`` places, in blocks whose source and target do not overlap."""
    for first in range(0, count, by):
        last = min(first + by, count)
        target, source = list(within), list(within)
        target[axis], source[axis] = slice(first, last), slice(first + by, last + by)
        array[tuple(target)] = array[tuple(source)]


def _with(triple: Triple, changes: dict[int, int]) -> Triple:
    x, y, z = (changes.get(axis, side) for axis, side in enumerate(triple))
    return (x, y, z)


def _cut(places: dict[int, slice]) -> tuple[slice, ...]:
    """Return an index of (K, X, Y, Z) with slices along some of the three axes and everything along the others."""
    return (slice(None), *(places.get(axis, slice(None)) for axis in range(3)))
