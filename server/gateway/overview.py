"""Status of a gateway, for its status page, for Prometheus and for readiness checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiseg.system.durable_files import free_bytes
from server.gateway.job_kinds import JOB_KINDS
from server.gateway.status_document import MAX_ROWS, status_document
from server.jobs.database import QueueError
from server.jobs.queue import Queue

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from server.gateway.rejections import RejectionLog
    from server.gateway.ups_worklists import Worklists


class Overview:
    """Collects the status on request."""

    def __init__(
        self,
        queue: Queue,
        folder: Path,
        keep_free: int,
        studies: Callable[[], int],
        opened: Callable[[], int],
        *,
        arriving: Callable[[], list[str]],
        in_trouble: Callable[[], list[dict[str, Any]]],
        rejections: RejectionLog,
    ) -> None:
        """Configure the sources of the status.

        Args:
            queue: Queue of all jobs.
            folder: State folder; the free bytes of its volume are shown.
            keep_free: Free bytes below which instances are refused.
            studies: Function that returns the number of stored studies.
            opened: Function that returns the number of arriving studies.
            arriving: Function that returns the names of arriving studies.
            in_trouble: Function that returns the studies that need an operator: name, time and reason.
            rejections: Record of rejected associations and connections.
        """
        self._queue, self._folder, self._keep_free = queue, folder, keep_free
        self._studies, self._opened = studies, opened
        self._arriving, self._in_trouble, self._rejections = arriving, in_trouble, rejections
        self._broken: dict[str, str] = {}
        self._servers: Callable[[], Mapping[str, str]] = dict
        self._destinations: Mapping[str, Callable[[], str]] = {}
        self._polls: Mapping[str, Callable[[], str]] = {}
        self._worklists: Worklists | None = None

    def watch_servers(self, troubles: Callable[[], Mapping[str, str]]) -> None:
        """Include servers; ``troubles`` returns the problem of each by URL, "" if there is none."""
        self._servers = troubles

    def watch_destinations(self, troubles: Mapping[str, Callable[[], str]]) -> None:
        """Include destinations; each function of ``troubles`` returns the problem of one, "" if there is none."""
        self._destinations = troubles

    def watch_polls(self, troubles: Mapping[str, Callable[[], str]]) -> None:
        """Include polled archives; each function of ``troubles`` returns the problem of one, "" if there is none."""
        self._polls = troubles

    def watch_worklists(self, worklists: Worklists) -> None:
        """Include worklists and claimed workitems."""
        self._worklists = worklists

    def set_failure(self, what: str, why: str | None) -> None:
        """Record why a part of the gateway does not work; None if it works again."""
        if why is None:
            self._broken.pop(what, None)
        else:
            self._broken[what] = why

    def trouble(self) -> str:
        """Return what keeps the gateway from accepting instances, as a sentence; "" if nothing does."""
        if free_bytes(self._folder) < self._keep_free:
            return "The disk is nearly full; instances are refused until space is freed."
        return next(iter(self._broken.values()), "")

    def document(self) -> dict[str, Any]:
        """Return everything that the status page shows, as JSON."""
        return status_document(self._queue, self._folder, self.live(), shown=MAX_ROWS)

    def live(self) -> dict[str, Any]:
        """Return the part of the status that is held in memory only, for commands that run in other processes."""
        return {
            "time": time.time(),
            "trouble": self.trouble(),
            "open_studies": self._opened(),
            "arriving": self._arriving(),
            "servers": [{"url": url, "trouble": why} for url, why in self._servers().items()],
            "destinations": [{"name": name, "trouble": told()} for name, told in self._destinations.items()],
            "polls": [{"url": url, "trouble": told()} for url, told in self._polls.items()],
            "worklists": [] if self._worklists is None else self._worklists.status(),
            "workitems": [] if self._worklists is None else self._worklists.workitems(),
            "studies_in_trouble": self._in_trouble(),
            "rejected": self._rejections.latest(),
        }

    def metrics(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; called by the Prometheus client library."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        jobs = GaugeMetricFamily("semiseg_gateway_jobs", "Jobs by kind and state", labels=["kind", "state"])
        try:
            for kind in JOB_KINDS:
                for state, count in self._queue.count(kind).items():
                    jobs.add_metric([kind, state], float(count))
        except QueueError:  # the other metrics are still reported
            jobs.samples.clear()
        yield jobs
        rejected = CounterMetricFamily(
            "semiseg_gateway_rejected", "Associations and connections that were rejected", labels=["reason"]
        )
        for reason, count in sorted(self._rejections.counts().items()):
            rejected.add_metric([reason], float(count))
        yield rejected
        if self._worklists is not None:
            yield from self._worklists.collect()
        single = (
            ("semiseg_gateway_ready", "1 if instances are accepted, otherwise 0", float(not self.trouble())),
            ("semiseg_gateway_open_studies", "Studies that are arriving", float(self._opened())),
            ("semiseg_gateway_studies", "Stored studies", float(self._studies())),
            ("semiseg_gateway_studies_in_trouble", "Studies that need an operator", float(len(self._in_trouble()))),
            (
                "semiseg_gateway_disk_free_bytes",
                "Free bytes of the state volume",
                float(free_bytes(self._folder)),
            ),
        )
        for name, words, value in single:
            gauge = GaugeMetricFamily(name, words)
            gauge.add_metric([], value)
            yield gauge
