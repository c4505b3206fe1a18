"""The sliding window: an engine runs the windows, which are blended, and completed regions are yielded one by one.

While an engine computes a batch, the previous batch is blended. Windows with a single value (the air around a body)
have the same logits, so these are computed only once.
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
PROBE_STRIDE = 8  # stride of the voxels that are compared first when a window is checked for a single value


@dataclass
class Timing:
    """Time and windows of one scan.

    Attributes:
        seconds: Seconds per stage.
        windows: Number of windows.
        network_windows: Number of windows that the network ran.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    network_windows: int = 0

    def add(self, stage: str, since: float) -> float:
        """Add the time since ``since`` to ``stage``, and return the present time."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True)
class CompletedRegion:
    """Region of the volume that no later window changes.

    Attributes:
        sums: Weighted sums of the windows (K, x, y, z); valid until the next region is requested, and read-only.
        coverage: Sums of the windows' weights along the three axes.
        place: Slices of the region in the volume.
        shape: Shape of the volume.
    """

    sums: NDArray[np.float32]
    coverage: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    place: tuple[slice, slice, slice]
    shape: Triple

    def mean(self) -> NDArray[np.float32]:
        """Return the weighted mean of the windows (K, x, y, z)."""
        cx, cy, cz = self.coverage
        return np.asarray(self.sums / (cx[:, None, None] * cy[None, :, None] * cz))


@dataclass(frozen=True)
class SlidingWindow:
    """Tiling and blending of a volume.

    Attributes:
        window: Size of a window in voxels.
        overlap: Shares of a window, along each axis, covered again by the next, 0 <= overlap < 1.
        blending: Weighting of the voxels of a window.
        batch: Number of windows per call of the network; the last batch is padded, so that all have the same shape.
        outputs: Number of output channels K of the network.
        activation: Activation that is applied to each window before it is blended.
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
        """Run the windows of ``array`` (C, X, Y, Z), at least as large as a window, and yield completed regions.

        Raises:
            EngineError: The network failed.
            Cancelled: ``cancelled``, which is called before each batch, returned True.
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
            if not waiting:  # there were fewer batches than the engine can have pending
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
        """Yield the windows in order, in batches."""
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
    """A window: its start, and its row in the batch; None if its logits are those of the last ``repeated`` window."""

    start: Start
    row: int | None
    repeated: bool


@dataclass
class _Batch:
    """A batch of windows in order, of which the network runs ``rows``, and the handle of their logits."""

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
    known: Any = None  # a handle for the logits of windows with a single value

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
        """Yield the regions that are completed after this window."""
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
    """The windows of a volume, in the order that the slab requires."""

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
        """Return the completed planes and rows of a band and their place, after its last window; otherwise None."""
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
    """Return the value of each channel of (C, X, Y, Z) if each channel has a single value, else None."""
    first = window[:, :1, :1, :1]
    glance = window[:, ::PROBE_STRIDE, ::PROBE_STRIDE, ::PROBE_STRIDE]
    return first if bool((glance == first).all()) and bool((window == first).all()) else None


def _triple(shape: tuple[int, ...]) -> Triple:
    x, y, z = shape
    return (x, y, z)
