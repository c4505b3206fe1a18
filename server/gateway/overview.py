"""What there is to see of a gateway: for its page, for Prometheus, and for whoever asks whether it is well."""

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
    """Reads what is asked for when it is asked for."""

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
        """Read from these.

        Args:
            queue: Queue of all jobs.
            folder: State folder, of whose volume the free bytes are shown.
            keep_free: Free bytes below which nothing is accepted.
            studies: Function that returns the number of studies that are kept.
            opened: Function that returns the number of those that are arriving.
            arriving: Function that returns the names of those that are arriving.
            in_trouble: Function that returns the studies that are not whole: name, since when, and why.
            rejections: Record of those that were not let in.
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
        """Tell of servers; ``troubles`` returns what is wrong with each, "" where nothing is."""
        self._servers = troubles

    def watch_destinations(self, troubles: Mapping[str, Callable[[], str]]) -> None:
        """Tell of destinations; each of ``troubles`` returns what is wrong with one, "" where nothing is."""
        self._destinations = troubles

    def watch_polls(self, troubles: Mapping[str, Callable[[], str]]) -> None:
        """Tell of polled archives; each of ``troubles`` returns what is wrong with one, "" where nothing is."""
        self._polls = troubles

    def watch_worklists(self, worklists: Worklists) -> None:
        """Tell of worklists and of the workitems that are claimed."""
        self._worklists = worklists

    def set_failure(self, what: str, why: str | None) -> None:
        """A part of the gateway does not work, and why; None when it works again."""
        if why is None:
            self._broken.pop(what, None)
        else:
            self._broken[what] = why

    def trouble(self) -> str:
        """What keeps it from working, as a sentence; "" where nothing does."""
        if free_bytes(self._folder) < self._keep_free:
            return "The disk is nearly full; instances are refused until there is room."
        return next(iter(self._broken.values()), "")

    def document(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON."""
        return status_document(self._queue, self._folder, self.live(), shown=MAX_ROWS)

    def live(self) -> dict[str, Any]:
        """What the gateway knows in memory only, for commands that run beside it."""
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
        """The same in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        """For Prometheus' library."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        jobs = GaugeMetricFamily("semiseg_gateway_jobs", "Jobs by kind and state", labels=["kind", "state"])
        try:
            for kind in JOB_KINDS:
                for state, count in self._queue.count(kind).items():
                    jobs.add_metric([kind, state], float(count))
        except QueueError:  # the other figures say more then
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
            ("semiseg_gateway_ready", "1 while instances are accepted", float(not self.trouble())),
            ("semiseg_gateway_open_studies", "Studies that are arriving", float(self._opened())),
            ("semiseg_gateway_studies", "Studies that are kept", float(self._studies())),
            ("semiseg_gateway_studies_in_trouble", "Studies that are not whole", float(len(self._in_trouble()))),
            ("semiseg_gateway_disk_free_bytes", "Free bytes where studies are kept", float(free_bytes(self._folder))),
        )
        for name, words, value in single:
            gauge = GaugeMetricFamily(name, words)
            gauge.add_metric([], value)
            yield gauge
