"""Progress over the passes of one scan: the coarse pass, the pass over the selected windows, and a full pass."""

from __future__ import annotations

from dataclasses import dataclass

from semiseg.inference.timing import Progress


@dataclass
class PassProgress:
    """Number of windows done in all passes over a scan.

    Attributes:
        progress: Function that is called with (windows done, windows in total).
        completed: Number of windows of the passes that have ended.
    """

    progress: Progress | None
    completed: int = 0

    def of_pass(self, count: int, *, following: int = 0) -> Progress | None:
        """Return the function that reports the progress of the next pass.

        Args:
            count: Number of windows of the pass.
            following: Largest number of windows of the pass after it.
        """
        progress, completed = self.progress, self.completed
        if progress is None:
            return None
        return lambda done, _: progress(completed + done, completed + count + following)

    def end_pass(self, count: int) -> None:
        """Record that a pass of ``count`` windows has ended."""
        self.completed += count
