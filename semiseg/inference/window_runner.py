"""Runs windows of a volume through an engine in batches, several batches ahead of the caller.

Windows with a single value (the air around a body) have the same logits, so these are computed only once.
"""

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
from semiseg.inference.timing import Timing

PROBE_STRIDE = 8  # stride of the voxels that are compared first when a window is checked for a single value


@dataclass(frozen=True)
class WindowOutput:
    """Logits of one window, or a window that was skipped.

    Attributes:
        start: First voxel of the window.
        handle: Handle of the engine for a batch that contains the logits; None if the window was skipped.
        row: Row of the window in that batch.
    """

    start: Start
    handle: Any
    row: int


@dataclass(frozen=True)
class WindowRunner:
    """Runs windows of one size.

    Attributes:
        engine: Engine that runs the network.
        window: Size of a window in voxels.
        batch: Number of windows per call of the network; the last batch is padded, so that all have the same shape.
        timing: Object that receives the seconds of the stages ``windows`` and ``network``.
        cancelled: Function that is called before each batch and ends the pass by returning True.
        name: Name of the pass for the message of :class:`Cancelled`, such as ``of the coarse pass``.
    """

    engine: Engine
    window: Triple
    batch: int
    timing: Timing
    cancelled: Callable[[], bool] | None = None
    name: str = ""

    def run(
        self, array: NDArray[np.float32], starts: Iterable[tuple[Start, bool]], count: int
    ) -> Iterator[list[WindowOutput]]:
        """Run windows of ``array`` (C, X, Y, Z) in order.

        Args:
            array: The volume.
            starts: First voxel of each window, and True if it is to be run. Skipped windows are yielded at their place
                in the order, without logits.
            count: Number of windows to run.

        Yields:
            Consecutive windows; their handles are valid until the next list is requested.

        Raises:
            EngineError: The network failed.
            Cancelled: ``cancelled`` returned True.
        """
        started = 0
        waiting: deque[_Batch] = deque()
        known: Any = None  # a handle for the logits of windows with a single value
        for batch in chain(self._batches(array, starts), repeat(None, self.engine.max_pending)):
            if batch is not None:
                if self.cancelled is not None and self.cancelled():
                    which = f" {self.name}" if self.name else ""
                    raise Cancelled(f"Stopped after {started} of {count} windows{which}.")
                self._start(batch)
                started += sum(item.needed for item in batch.items)
                waiting.append(batch)
                if len(waiting) <= self.engine.max_pending:
                    continue
            if not waiting:  # there were fewer batches than the engine can have pending
                break
            outputs, known = self._outputs(waiting.popleft(), known)
            yield outputs

    def _start(self, batch: _Batch) -> None:
        clock = time.perf_counter()
        if batch.windows is not None:
            batch.handle = self.engine.run(batch.windows)
        self.timing.add("network", clock)
        self.timing.network_windows += batch.rows

    def _outputs(self, batch: _Batch, known: Any) -> tuple[list[WindowOutput], Any]:
        """Wait for a batch; return its outputs and the handle for the last window with a single value."""
        if batch.rows:
            clock = time.perf_counter()
            self.engine.wait(batch.handle)
            self.timing.add("network", clock)
        outputs = []
        for item in batch.items:
            if item.repeated:
                logits = self.engine.logits(batch.handle)[item.row : item.row + 1]
                known = self.engine.wrap_logits(logits.copy())
            if not item.needed:
                outputs.append(WindowOutput(item.start, None, 0))
            elif item.reuses:
                outputs.append(WindowOutput(item.start, known, 0))
            else:
                outputs.append(WindowOutput(item.start, batch.handle, item.row))
        return outputs, known

    def _batches(self, array: NDArray[np.float32], starts: Iterable[tuple[Start, bool]]) -> Iterator[_Batch]:
        """Yield the windows in order, in batches."""
        batch = _Batch()
        last: NDArray[np.float32] | None = None
        clock = time.perf_counter()
        for start, needed in starts:
            if not needed:
                batch.items.append(_Item(start, needed=False))
                continue
            window = array[(slice(None), *(slice(at, at + side) for at, side in zip(start, self.window, strict=True)))]
            value = _only_value(window)
            if value is not None and last is not None and np.array_equal(value, last):
                batch.items.append(_Item(start, reuses=True))
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
    """A window.

    Attributes:
        start: First voxel of the window.
        row: Row in the batch, if the network runs the window.
        repeated: True if the logits are kept for later windows with the same single value.
        reuses: True if the logits are those of the last ``repeated`` window.
        needed: False if the window is skipped.
    """

    start: Start
    row: int = 0
    repeated: bool = False
    reuses: bool = False
    needed: bool = True


@dataclass
class _Batch:
    """A batch of windows in order, of which the network runs ``rows``, and the handle of their logits."""

    items: list[_Item] = field(default_factory=list)
    windows: NDArray[np.float32] | None = None
    rows: int = 0
    handle: Any = None


def _only_value(window: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the value of each channel of (C, X, Y, Z) if each channel has a single value, else None."""
    first = window[:, :1, :1, :1]
    glance = window[:, ::PROBE_STRIDE, ::PROBE_STRIDE, ::PROBE_STRIDE]
    return first if bool((glance == first).all()) and bool((window == first).all()) else None
