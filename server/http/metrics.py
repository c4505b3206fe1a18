"""What Prometheus learns about segmentations, beside BentoML's own figures about requests."""

from __future__ import annotations

from semiseg.inference.sliding_window import Timing

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """Counters of one server process; to be made once."""

    def __init__(self) -> None:
        # Not before: it decides when imported whether its figures go where BentoML's /metrics looks for them.
        from prometheus_client import Counter, Histogram

        self._answers = Counter("semiseg_answers_total", "Answers of POST /segment by status", labelnames=["status"])
        self._windows = Counter("semiseg_windows_total", "Windows that the network ran")
        self._seconds = Histogram(
            "semiseg_stage_seconds", "Seconds per stage of one scan", labelnames=["stage"], buckets=_BUCKETS
        )

    def count(self, status: int) -> None:
        """One more answer with this status."""
        self._answers.labels(status=str(status)).inc()

    def observe(self, timing: Timing) -> None:
        """The stages of one scan that was segmented."""
        self._windows.inc(timing.run)
        for stage, seconds in timing.seconds.items():
            self._seconds.labels(stage=stage).observe(seconds)
