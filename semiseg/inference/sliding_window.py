"""The sliding window: windows through an engine, blended, and handed over as soon as no later window touches a voxel.

The network runs ahead: while an engine computes a batch, the one before is blended. Windows of one single value (the
air around a body) all have the same logits, so these are computed once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, product, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Engine, Start
from semiseg.engines.slab import Activation, SlabPlan, Triple, plan_slab
from semiseg.errors import Cancelled
from semiseg.inference.windows import Blending, coverage_along, starts_along, window_weights

Progress = Callable[[int, int], None]
PROBE_STRIDE = 8  # a window is looked at this coarsely before it is looked at whole


@dataclass
class Timing:
    """Seconds spent per stage of one scan, how many windows it took, and how many of them the network ran."""

    seconds: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    network_windows: int = 0

    def add(self, stage: str, since: float) -> float:
        """Count the time since ``since`` towards ``stage``; returns the present moment."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True)
class CompletedRegion:
    """Voxels that no later window changes.

    Attributes:
        sums: (K, x, y, z) blended windows; they hold until the next part is asked for, and are not to be changed.
        coverage: what the windows' weights sum to along the three axes.
        place: where, in the volume.
        shape: of the volume.
    """

    sums: NDArray[np.float32]
    coverage: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    place: tuple[slice, slice, slice]
    shape: Triple

    def mean(self) -> NDArray[np.float32]:
        """The weighted mean of the windows, (K, x, y, z)."""
        cx, cy, cz = self.coverage
        return np.asarray(self.sums / (cx[:, None, None] * cy[None, :, None] * cz))


@dataclass(frozen=True)
class SlidingWindow:
    """How a volume is tiled and blended.

    Attributes:
        window: voxels of a window.
        overlap: Shares of a window, along each axis, covered again by the next, 0 <= overlap < 1.
        blending: how the voxels of a window are weighted.
        batch: windows per call of the network; the last call is filled up, so that engines see one shape.
        outputs: K, channels of the network's answer.
        activation: what is applied to each window before it is blended.
    """

    window: Triple
    overlap: tuple[float, float, float]
    blending: Blending
    batch: int
    outputs: int
    activation: Activation

    def blend(
        self,
        engine: Engine,
        array: NDArray[np.float32],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing,
    ) -> Iterator[CompletedRegion]:
        """Run the windows of ``array`` (C, X, Y, Z), at least a window large, and yield what is finished.

        Raises:
            EngineError: the network failed.
            Cancelled: ``cancelled``, asked before each batch, said so.
        """
        tiles = _Tiles(self, _triple(array.shape[1:]))
        slab = engine.open_slab(tiles.plan, self.outputs, self.activation)
        state = _State(engine, slab, window_weights(self.window, self.blending), timing)
        started = done = 0
        waiting: deque[_Batch] = deque()
        for batch in chain(self._batches(array, tiles, timing), repeat(None, engine.max_pending)):
            if batch is not None:
                if cancelled is not None and cancelled():
                    raise Cancelled(f"Stopped after {started} of {tiles.count} windows.")
                state.start(batch)
                started += len(batch.items)
                waiting.append(batch)
                if len(waiting) <= engine.max_pending:
                    continue
            if not waiting:  # fewer batches than the engine could have at once
                break
            oldest = waiting.popleft()
            for item in oldest.items:
                state.add(oldest, item)
                yield from state.completed(tiles, item)
            done += len(oldest.items)
            if progress is not None:
                progress(done, tiles.count)
        timing.windows += tiles.count

    def _batches(self, array: NDArray[np.float32], tiles: _Tiles, timing: Timing) -> Iterator[_Batch]:
        """The windows in order, in batches."""
        batch = _Batch()
        last: NDArray[np.float32] | None = None
        clock = time.perf_counter()
        for start in tiles.starts():
            window = array[(slice(None), *(slice(at, at + side) for at, side in zip(start, self.window, strict=True)))]
            value = _only_value(window)
            if value is not None and last is not None and np.array_equal(value, last):
                batch.items.append(_Item(start, None, repeated=False))
                continue
            last = last if value is None else value
            if batch.windows is None:
                batch.windows = np.zeros((self.batch, *window.shape), dtype=np.float32)
            batch.windows[batch.rows] = window
            batch.items.append(_Item(start, batch.rows, repeated=value is not None))
            batch.rows += 1
            if batch.rows == self.batch:
                timing.add("windows", clock)
                yield batch
                clock = time.perf_counter()
                batch = _Batch()
        timing.add("windows", clock)
        if batch.items:
            yield batch


@dataclass(frozen=True)
class _Item:
    """A window: where it starts; its row in the batch, or None if its logits are those of the last ``repeated`` one."""

    start: Start
    row: int | None
    repeated: bool


@dataclass
class _Batch:
    """Some windows in order, ``rows`` of which the network has to see, and its answer to them."""

    items: list[_Item] = field(default_factory=list)
    windows: NDArray[np.float32] | None = None
    rows: int = 0
    handle: Any = None


@dataclass
class _State:
    """One pass of an engine over a volume."""

    engine: Engine
    slab: Any
    weights: NDArray[np.float32]
    timing: Timing
    known: Any = None  # a handle for the logits of windows of one value

    def start(self, batch: _Batch) -> None:
        clock = time.perf_counter()
        if batch.windows is not None:
            batch.handle = self.engine.run(batch.windows)
        self.timing.add("network", clock)
        self.timing.network_windows += batch.rows

    def add(self, batch: _Batch, item: _Item) -> None:
        clock = time.perf_counter()
        if item.row is not None:
            self.engine.wait(batch.handle)
            clock = self.timing.add("network", clock)
            if item.repeated:
                logits = self.engine.logits(batch.handle)[item.row : item.row + 1]
                self.known = self.engine.wrap_logits(logits.copy())
        handle, row = (self.known, 0) if item.row is None else (batch.handle, item.row)
        self.engine.accumulate(self.slab, handle, row, item.start, self.weights)
        self.timing.add("blending", clock)

    def completed(self, tiles: _Tiles, item: _Item) -> Iterator[CompletedRegion]:
        """What is finished after this window."""
        ended = tiles.ended(item.start)
        if ended is None:
            return
        planes, rows, place = ended
        first = place[tiles.plan.outer].start
        for sums in self.engine.completed(self.slab, planes, rows):
            after = first + sums.shape[1 + tiles.plan.outer]
            x, y, z = (slice(first, after) if axis == tiles.plan.outer else cut for axis, cut in enumerate(place))
            yield CompletedRegion(sums, tiles.coverage_of((x, y, z)), (x, y, z), tiles.shape)
            first = after
        clock = time.perf_counter()
        self.engine.advance(self.slab, planes, rows)
        self.timing.add("blending", clock)


class _Tiles:
    """The windows of a volume, in the order in which the slab wants them."""

    def __init__(self, how: SlidingWindow, shape: Triple) -> None:
        self.shape = shape
        sides = zip(shape, how.window, how.overlap, strict=True)
        self._starts = [starts_along(n, w, overlap) for n, w, overlap in sides]
        self._coverage = [
            coverage_along(n, w, s, how.blending) for n, w, s in zip(shape, how.window, self._starts, strict=True)
        ]
        self.plan: SlabPlan = plan_slab(shape, how.window, self._starts)
        self._order = (self.plan.outer, self.plan.middle, 3 - self.plan.outer - self.plan.middle)
        self.count = len(self._starts[0]) * len(self._starts[1]) * len(self._starts[2])

    def starts(self) -> Iterator[Start]:
        for found in product(*(self._starts[axis] for axis in self._order)):
            by_axis = dict(zip(self._order, found, strict=True))
            yield (by_axis[0], by_axis[1], by_axis[2])

    def ended(self, start: Start) -> tuple[int, int, tuple[slice, slice, slice]] | None:
        """After a band's last window: its finished planes, its finished rows, and their place."""
        outer, middle, inner = self._order
        if start[inner] != self._starts[inner][-1]:
            return None
        places = {inner: slice(0, self.shape[inner])}
        for axis in (outer, middle):
            after = [at for at in self._starts[axis] if at > start[axis]]
            places[axis] = slice(start[axis], after[0] if after else self.shape[axis])
        planes, rows = (places[axis].stop - places[axis].start for axis in (outer, middle))
        return planes, rows, (places[0], places[1], places[2])

    def coverage_of(
        self, place: tuple[slice, slice, slice]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        x, y, z = (along[cut] for along, cut in zip(self._coverage, place, strict=True))
        return (x, y, z)


def _only_value(window: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The value of each channel of (C, X, Y, Z), if that is all there is."""
    first = window[:, :1, :1, :1]
    glance = window[:, ::PROBE_STRIDE, ::PROBE_STRIDE, ::PROBE_STRIDE]
    return first if bool((glance == first).all()) and bool((window == first).all()) else None


def _triple(shape: tuple[int, ...]) -> Triple:
    x, y, z = shape
    return (x, y, z)
