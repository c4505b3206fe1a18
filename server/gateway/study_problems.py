"""Studies that need an operator: they are incomplete, or a conflict has to be decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.gateway.archive_poller import ArchivePoller
from server.gateway.config import GatewayConfig
from server.gateway.instance_store import InstanceStore
from server.gateway.job_kinds import FETCH
from server.gateway.job_payloads import FetchPayload
from server.jobs.queue import Queue

INCOMPLETE_ADVICE = "`semiseg gateway complete STUDY` has it segmented as it is; `purge STUDY` deletes it."
CONFLICT_ADVICE = "`semiseg gateway conflict STUDY` shows the differences and decides which version is kept."


class StudyProblems:
    """Finds the studies that need an operator."""

    def __init__(
        self,
        config: GatewayConfig,
        queue: Queue,
        instance_store: InstanceStore,
        held: Callable[[], Mapping[str, str]],
        pollings: Sequence[ArchivePoller],
    ) -> None:
        """Configure where problems are looked for.

        Args:
            config: Configuration of the gateway.
            queue: Queue of all jobs.
            instance_store: Store of the studies' instances.
            held: Function that returns the reasons why studies are held, by name.
            pollings: Pollers of archives, which may be added later.
        """
        self._config, self._queue, self._instance_store, self._held, self._pollings = (
            config,
            queue,
            instance_store,
            held,
            pollings,
        )

    def instance_count(self, name: str) -> int:
        """Return the number of stored instances of a study."""
        return len(self._instance_store.instances(name))

    def is_being_fetched(self, name: str) -> bool:
        """Return True while a study is fetched from an archive, or waits for it."""
        return bool(self._queue.jobs("waiting", "running", queue=FETCH, owner=name))

    def missing_text(self, name: str) -> str:
        """Describe what is missing of a study, as a sentence; "" if nothing is known to be missing."""
        missing = self._instance_store.missing_reasons(name)
        fetches = self._queue.jobs(queue=FETCH, owner=name)
        if fetches and fetches[-1].state == "failed" and not self._instance_store.is_accepted(name):
            missing.append(fetches[-1].result.get("error", "It could not be fetched."))
        more = f" ({len(missing)} things are missing)" if len(missing) > 1 else ""
        return f"The study is incomplete. {missing[0]}{more}" if missing else ""

    def conflict_text(self, name: str) -> str:
        """Describe what an operator has to decide before a study is segmented, as a sentence; "" if nothing."""
        if self._config.completeness.patients == "segment" or not self._instance_store.is_of_two_patients(name):
            return ""
        found = self._instance_store.find_conflict(name)
        return "" if found is None else found.describe()

    def _advice(self, name: str) -> str:
        return CONFLICT_ADVICE if self.conflict_text(name) else INCOMPLETE_ADVICE

    def problems(self) -> list[dict[str, Any]]:
        """Return the studies that need an operator: name, time of the last change, and reason."""
        found = {
            name: {"study": name, "since": self._instance_store.last_change(name), "why": f"{why} {self._advice(name)}"}
            for name, why in self._held().items()
        }
        patience = {poll.url: poll.trouble_after for poll in self._config.polls}
        for job in self._queue.jobs("waiting", "running", queue=FETCH):
            fetch = FetchPayload.from_job(job)
            if fetch.tries >= patience.get(fetch.url, 1):
                why = f"Fetching it failed {fetch.tries} times; it is tried again. {fetch.trouble}"
                found.setdefault(fetch.study, {"study": fetch.study, "since": job.created, "why": why})
        for polling in list(self._pollings):
            for one in polling.unstable_studies():
                found.setdefault(str(one["study"]), one)
        return sorted(found.values(), key=lambda one: float(one["since"]), reverse=True)
