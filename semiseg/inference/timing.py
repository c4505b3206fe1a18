"""Time and windows of the segmentation of one scan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WindowCounts:
    """Numbers of windows of one scan, and the reason for them.

    Attributes:
        planned: Number of windows of a full pass.
        run: Number of windows of the pass that gave the result.
        preliminary: Number of windows that were run before: those of the coarse pass, and those of a pass that was
            followed by a full pass.
        reason: A sentence that says why windows were skipped, or why none were.
    """

    planned: int
    run: int
    preliminary: int
    reason: str

    @property
    def description(self) -> str:
        """The numbers and the reason in sentences."""
        before = f", after {self.preliminary} preliminary windows" if self.preliminary else ""
        return f"{self.run} of the {self.planned} windows of a full pass were run{before}. {self.reason}"


@dataclass
class Timing:
    """Time and windows of one scan.

    Attributes:
        seconds: Seconds per stage.
        windows: Number of windows, including those of a coarse pass.
        network_windows: Number of windows that the network ran.
        counts: Windows of a full pass and windows that were run; None until the segmentation has ended.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    network_windows: int = 0
    counts: WindowCounts | None = None

    def add(self, stage: str, since: float) -> float:
        """Add the time since ``since`` to ``stage``, and return the present time."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now
