"""Why studies wait for something that may not come by itself: they lack something, or somebody has to decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.gateway.config import GatewayConfig
from server.gateway.inbox import Inbox
from server.gateway.kinds import FETCH
from server.gateway.polling import Polling
from server.jobs.queue import Queue

DECIDE = "`semiseg gateway complete STUDY` has it segmented as it is, `purge STUDY` deletes it."
DECIDE_PATIENT = "`semiseg gateway conflict STUDY` shows what differs, and decides."


class StudyTroubles:
    """Finds them when it is asked."""

    def __init__(
        self,
        config: GatewayConfig,
        queue: Queue,
        inbox: Inbox,
        held: Callable[[], Mapping[str, str]],
        pollings: Callable[[], Sequence[Polling]],
    ) -> None:
        """Look into these.

        Args:
            config: The configuration.
            queue: The jobs.
            inbox: The studies.
            held: Function that returns the reasons why studies are held, by name.
            pollings: Function that returns the archives that are asked.
        """
        self._config, self._queue, self._inbox, self._held, self._pollings = config, queue, inbox, held, pollings

    def lacking(self, name: str) -> str:
        """What is missing of a study, as a sentence; "" where nothing is known to be."""
        missing = self._inbox.lacking(name)
        fetches = self._queue.jobs(queue=FETCH, owner=name)
        if fetches and fetches[-1].state == "failed" and not self._inbox.is_accepted(name):
            missing.append(fetches[-1].result.get("error", "It could not be fetched."))
        more = f" ({len(missing)} things are missing)" if len(missing) > 1 else ""
        return f"The study is not whole. {missing[0]}{more}" if missing else ""

    def undecided(self, name: str) -> str:
        """What an operator has to decide before a study is segmented, as a sentence; "" for nothing."""
        if self._config.complete.patients == "segment" or not self._inbox.is_of_two_patients(name):
            return ""
        found = self._inbox.conflict(name)
        return "" if found is None else found.sentence()

    def _advice(self, name: str) -> str:
        return DECIDE_PATIENT if self.undecided(name) else DECIDE

    def listed(self) -> list[dict[str, Any]]:
        """Studies that wait for something which may not come by itself, and why."""
        found = {
            name: {"study": name, "since": self._inbox.changed(name), "why": f"{why} {self._advice(name)}"}
            for name, why in self._held().items()
        }
        patience = {poll.url: poll.trouble_after for poll in self._config.polls}
        for job in self._queue.jobs("waiting", "running", queue=FETCH):
            told, name = job.payload, job.payload["study"]
            if told.get("tries", 0) >= patience.get(told["url"], 1):
                why = f"It could not be fetched {told['tries']} times, and is tried again. {told['trouble']}"
                found.setdefault(name, {"study": name, "since": job.created, "why": why})
        for polling in list(self._pollings()):
            for one in polling.unsettled():
                found.setdefault(str(one["study"]), one)
        return sorted(found.values(), key=lambda one: float(one["since"]), reverse=True)
