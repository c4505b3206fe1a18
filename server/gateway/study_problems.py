"""Why studies wait for something that may not come by itself: they lack something, or somebody has to decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.gateway.archive_poller import ArchivePoller
from server.gateway.config import GatewayConfig
from server.gateway.instance_store import InstanceStore
from server.gateway.job_kinds import FETCH
from server.jobs.queue import Queue

INCOMPLETE_ADVICE = "`semiseg gateway complete STUDY` has it segmented as it is, `purge STUDY` deletes it."
CONFLICT_ADVICE = "`semiseg gateway conflict STUDY` shows what differs, and decides."


class StudyProblems:
    """Finds them when it is asked."""

    def __init__(
        self,
        config: GatewayConfig,
        queue: Queue,
        instance_store: InstanceStore,
        held: Callable[[], Mapping[str, str]],
        pollings: Callable[[], Sequence[ArchivePoller]],
    ) -> None:
        """Look into these.

        Args:
            config: The configuration.
            queue: The jobs.
            instance_store: The studies.
            held: Function that returns the reasons why studies are held, by name.
            pollings: Function that returns the archives that are asked.
        """
        self._config, self._queue, self._instance_store, self._held, self._pollings = (
            config,
            queue,
            instance_store,
            held,
            pollings,
        )

    def missing_text(self, name: str) -> str:
        """What is missing of a study, as a sentence; "" where nothing is known to be."""
        missing = self._instance_store.missing_reasons(name)
        fetches = self._queue.jobs(queue=FETCH, owner=name)
        if fetches and fetches[-1].state == "failed" and not self._instance_store.is_accepted(name):
            missing.append(fetches[-1].result.get("error", "It could not be fetched."))
        more = f" ({len(missing)} things are missing)" if len(missing) > 1 else ""
        return f"The study is not whole. {missing[0]}{more}" if missing else ""

    def conflict_text(self, name: str) -> str:
        """What an operator has to decide before a study is segmented, as a sentence; "" for nothing."""
        if self._config.complete.patients == "segment" or not self._instance_store.is_of_two_patients(name):
            return ""
        found = self._instance_store.find_conflict(name)
        return "" if found is None else found.describe()

    def _advice(self, name: str) -> str:
        return CONFLICT_ADVICE if self.conflict_text(name) else INCOMPLETE_ADVICE

    def problems(self) -> list[dict[str, Any]]:
        """Studies that wait for something which may not come by itself, and why."""
        found = {
            name: {"study": name, "since": self._instance_store.last_change(name), "why": f"{why} {self._advice(name)}"}
            for name, why in self._held().items()
        }
        patience = {poll.url: poll.trouble_after for poll in self._config.polls}
        for job in self._queue.jobs("waiting", "running", queue=FETCH):
            told, name = job.payload, job.payload["study"]
            if told.get("tries", 0) >= patience.get(told["url"], 1):
                why = f"It could not be fetched {told['tries']} times, and is tried again. {told['trouble']}"
                found.setdefault(name, {"study": name, "since": job.created, "why": why})
        for polling in list(self._pollings()):
            for one in polling.unstable_studies():
                found.setdefault(str(one["study"]), one)
        return sorted(found.values(), key=lambda one: float(one["since"]), reverse=True)
