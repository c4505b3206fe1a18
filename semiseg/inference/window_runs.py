"""Windows of a volume through an engine: in batches, one batch ahead, and windows of a single value only once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Engine, Start
from semiseg.engines.slab import Triple
from semiseg.errors import Cancelled

Progress = Callable[[int, int], None]
GLANCE = 8  # a window is looked at this coarsely before it is looked at whole


@dataclass(frozen=True)
class WindowCounts:
    """How many windows a pass took, and why.

    Attributes:
        planned: Windows of a full pass.
        run: Windows of these that were run.
        coarse: Windows that were run before: those of the coarse pass, and those of a first pass that was not enough.
        reason: Why windows were skipped, or why none were, as a sentence.
    """

    planned: int
    run: int
    coarse: int
    reason: str

    @property
    def sentence(self) -> str:
        """All of it in words."""
        before = f" after {self.coarse} windows of a coarse pass" if self.coarse else ""
        return f"{self.run} of {self.planned} windows were run{before}. {self.reason}"


@dataclass
class Timing:
    """Cost of one scan.

    Attributes:
        seconds: Seconds of each stage.
        windows: Windows that the pass took, those of a coarse pass included.
        run: Windows that the network ran: of those with the same single value only one.
        counts: Windows of the full pass and those that were run; None before the windows.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    run: int = 0
    counts: WindowCounts | None = None

    def add(self, stage: str, since: float) -> float:
        """Count the time since ``since`` towards ``stage``; returns the present moment."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True)
class WindowRun:
    """A window in its turn.

    Attributes:
        start: Its first voxel.
        handle: The engine's handle of a batch that holds its logits; None for a window that was skipped.
        row: Its row in that batch.
    """

    start: Start
    handle: Any
    row: int


@dataclass(frozen=True)
class WindowRunner:
    """Runs windows of one size.

    Attributes:
        engine: Runs the network.
        window: Voxels of a window.
        batch: Windows per call of the network; the last call is filled up, so that engines see one shape.
        timing: Receives the seconds of the stages ``windows`` and ``network``.
        cancelled: Asked before each batch; True ends the pass.
        name: Name of the pass in the sentence of :class:`Cancelled`, such as `` of the coarse pass``.
    """

    engine: Engine
    window: Triple
    batch: int
    timing: Timing
    cancelled: Callable[[], bool] | None = None
    name: str = ""

    def run(
        self, array: NDArray[np.float32], starts: Iterable[tuple[Start, bool]], count: int
    ) -> Iterator[list[WindowRun]]:
        """Run windows of ``array`` (C, X, Y, Z) in order.

        Args:
            array: The volume.
            starts: First voxel of each window, and whether it is to be run; others are only passed on in their turn.
            count: Number of windows that are to be run.

        Yields:
            Windows that follow one another; their handles hold until the next ones are asked for.

        Raises:
            EngineError: The network failed.
            Cancelled: ``cancelled`` said so.
        """
        engine, started = self.engine, 0
        waiting: deque[_Batch] = deque()
        known: Any = None  # a handle for the logits of the last window of a single value
        for batch in chain(self._batches(array, starts), repeat(None, engine.ahead)):
            if batch is not None:
                if self.cancelled is not None and self.cancelled():
                    raise Cancelled(f"Stopped after {started} of {count} windows{self.name}.")
                self._start(batch)
                started += sum(item.wanted for item in batch.items)
                waiting.append(batch)
                if len(waiting) <= engine.ahead:
                    continue
            if not waiting:  # fewer batches than the engine could have at once
                break
            oldest = waiting.popleft()
            if oldest.rows:
                clock = time.perf_counter()
                engine.wait(oldest.handle)
                self.timing.add("network", clock)
            runs = []
            for item in oldest.items:
                if item.repeated and item.row is not None:
                    known = engine.handle_of(engine.logits(oldest.handle)[item.row : item.row + 1].copy())
                handle, row = (known, 0) if item.row is None else (oldest.handle, item.row)
                runs.append(WindowRun(item.start, handle if item.wanted else None, row))
            yield runs

    def _start(self, batch: _Batch) -> None:
        clock = time.perf_counter()
        if batch.windows is not None:
            batch.handle = self.engine.run(batch.windows)
        self.timing.add("network", clock)
        self.timing.run += batch.rows

    def _batches(self, array: NDArray[np.float32], starts: Iterable[tuple[Start, bool]]) -> Iterator[_Batch]:
        """The windows in order, in batches."""
        batch = _Batch()
        last: NDArray[np.float32] | None = None
        clock = time.perf_counter()
        for start, wanted in starts:
            if not wanted:
                batch.items.append(_Item(start, None, repeated=False, wanted=False))
                continue
            window = array[(slice(None), *(slice(at, at + side) for at, side in zip(start, self.window, strict=True)))]
            value = _only_value(window)
            if value is not None and last is not None and np.array_equal(value, last):
                batch.items.append(_Item(start, None, repeated=True))
                continue
            last = last if value is None else value
            if batch.windows is None:
                batch.windows = np.zeros((self.batch, *window.shape), dtype=np.float32)
            batch.windows[batch.rows] = window
            batch.items.append(_Item(start, batch.rows, repeated=value is not None))
            batch.rows += 1
            if batch.rows == self.batch:
                self.timing.add("windows", clock)
                yield batch
                clock = time.perf_counter()
                batch = _Batch()
        self.timing.add("windows", clock)
        if batch.items:
            yield batch


@dataclass(frozen=True)
class _Item:
    """A window: its row in the batch, or None if it is skipped or its logits are those of the last ``repeated`` one."""

    start: Start
    row: int | None
    repeated: bool
    wanted: bool = True


@dataclass
class _Batch:
    """Some windows in order, ``rows`` of which the network has to see, and its answer to them."""

    items: list[_Item] = field(default_factory=list)
    windows: NDArray[np.float32] | None = None
    rows: int = 0
    handle: Any = None


def _only_value(window: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The value of each channel of (C, X, Y, Z), if that is all there is."""
    first = window[:, :1, :1, :1]
    glance = window[:, ::GLANCE, ::GLANCE, ::GLANCE]
    return first if bool((glance == first).all()) and bool((window == first).all()) else None
