"""Progress over the passes that a scan takes: the coarse one, the full one, and the full one again."""

from __future__ import annotations

from dataclasses import dataclass

from semiseg.inference.window_runs import Progress


@dataclass
class PassSteps:
    """Windows done in all passes over a scan, for who is told of them.

    Attributes:
        told: Called with (windows done, windows in all).
        most: Windows of the full pass.
        before: Windows of the passes that have ended.
    """

    told: Progress | None
    most: int
    before: int = 0

    def coarsely(self, done: int, count: int) -> None:
        """Tell of windows of the coarse pass; nobody knows yet how many follow."""
        if self.told is not None:
            self.told(done, count + self.most)

    def of(self, count: int) -> Progress | None:
        """What a pass of ``count`` windows tells."""
        told, before = self.told, self.before
        return None if told is None else lambda done, _: told(before + done, before + count)

    def end(self, count: int) -> None:
        """A pass of ``count`` windows has ended."""
        self.before += count
