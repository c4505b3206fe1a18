"""Prometheus metrics: requests, seconds per stage, jobs by state, and rejected uploads by reason.

The process has a registry of its own, separate from the default registry of the library. The number of its series does
not depend on what clients send, because a request is counted by its route and never by its path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from semiseg.inference.timing import Timing
from semiseg.system.durable_files import free_bytes
from semiseg.system.processors import usable_processors

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from server.http.job_store import JobStore
    from server.http.models import ServedModels

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """Metrics of one server process; to be created once."""

    def __init__(self, models: ServedModels, folder: Path, job_store: JobStore | None) -> None:
        """Create all metrics with the value 0.

        Args:
            models: Models whose engines are reported.
            folder: Folder for whose volume the free bytes are reported.
            job_store: Store whose jobs are counted; None if jobs are turned off.
        """
        from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

        disable_created_metrics()  # the creation time of each counter, which is not needed
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "semiseg_requests",
            "Requests by route and status",
            labelnames=["route", "status"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "semiseg_request_seconds",
            "Seconds from a request's head to the end of its response",
            labelnames=["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._refused = Counter(
            "semiseg_refused", "Uploads that were rejected", labelnames=["reason"], registry=self.registry
        )
        self._windows = Counter(
            "semiseg_windows", "Windows that the network ran", labelnames=["model"], registry=self.registry
        )
        self._network_seconds = Counter(
            "semiseg_network_seconds",
            "Seconds in which the network ran them; windows divided by seconds is its speed",
            labelnames=["model"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "semiseg_stage_seconds",
            "Seconds per stage of one scan",
            labelnames=["stage"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._ended = Counter("semiseg_jobs_ended", "Jobs that ended", labelnames=["state"], registry=self.registry)
        self.registry.register(_LiveCollector(models, folder, job_store))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route=route, status=str(status)).inc()
        self._request_seconds.labels(route=route).observe(seconds)

    def count_refusal(self, status: int) -> None:
        """Count an upload that was rejected."""
        self._refused.labels(reason=REFUSAL_REASONS.get(status, "other")).inc()

    def count_scan(self, model: str, timing: Timing) -> None:
        """Count a scan that was segmented, with its windows and the seconds of its stages."""
        self._windows.labels(model=model).inc(timing.network_windows)
        self._network_seconds.labels(model=model).inc(timing.seconds.get("network", 0.0))
        for stage, seconds in timing.seconds.items():
            self._seconds.labels(stage=stage).observe(seconds)

    def count_ended_job(self, state: str) -> None:
        """Count a job that ended."""
        self._ended.labels(state=state).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


REFUSAL_REASONS = {
    400: "form",
    408: "idle",
    413: "size",
    415: "type",
    422: "scan",
    429: "client",
    500: "failure",
    503: "busy",
    504: "time",
    507: "disk",
}


class _LiveCollector:
    """Metrics whose values are read when they are requested."""

    def __init__(self, models: ServedModels, folder: Path, job_store: JobStore | None) -> None:
        self._models, self._folder, self._job_store = models, folder, job_store

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

        engines = InfoMetricFamily("semiseg_model", "Models with their engine and precision", labels=["model"])
        for name, model in self._models.by_name.items():
            identity = model.identity
            told = {"engine": identity.engine or "", "precision": identity.precision, "sha256": identity.sha256 or ""}
            engines.add_metric([name], told)
        yield engines
        ready = GaugeMetricFamily("semiseg_ready", "1 once every model is warmed up")
        ready.add_metric([], float(self._models.ready))
        yield ready
        free = GaugeMetricFamily("semiseg_disk_free_bytes", "Free bytes where uploads and results are written")
        free.add_metric([], float(free_bytes(self._folder)))
        yield free
        load = GaugeMetricFamily("semiseg_processors", "Processors that this process may use")
        load.add_metric([], float(usable_processors()))
        yield load
        if self._job_store is not None:
            jobs = GaugeMetricFamily("semiseg_jobs", "Jobs by state", labels=["state"])
            for state, count in self._job_store.count().items():
                jobs.add_metric([state], float(count))
            yield jobs
