"""What is deleted after its time: studies that are done with, jobs that are not needed, and results without a job."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.gateway.context import GatewayContext
from server.gateway.inbox import delete
from server.gateway.kinds import FETCH, PURGE, SEGMENT
from server.gateway.studies import Studies
from server.gateway.work import Work

TIDYING = 60.0  # seconds between two looks for what is too old


class Retention:
    """Deletes what is too old when it is asked to."""

    def __init__(
        self, context: GatewayContext, studies: Studies, work: Work, *, is_claimed: Callable[[str], bool]
    ) -> None:
        """Delete by the ages that `keep` of the configuration gives; nothing is deleted yet.

        Args:
            context: The gateway's parts.
            studies: Studies that are waited for or held.
            work: The work that deletes a study with its jobs and results.
            is_claimed: Function that returns True for the name of a claimed workitem, whose inputs stay.
        """
        self._config, self._queue, self._inbox = context.config, context.queue, context.inbox
        self._audit, self._studies, self._work, self._is_claimed = context.audit, studies, work, is_claimed

    def tidy(self) -> float:
        """Delete studies that are done with, and then what is left without one; seconds until the next look."""
        keep, now, held = self._config.keep, time.time(), self._studies.held()
        for name in self._inbox.known():
            if self._is_claimed(name):
                continue
            jobs = [job for job in self._queue.jobs(owner=name) if job.queue not in (FETCH, PURGE)]
            if name in held and all(job.ended for job in jobs):
                seconds = keep.failed_days * 86400
                if now - self._inbox.changed(name) > seconds and self._work.forget(name, jobs):
                    self._audit.tell("purged", study=name, why=f"held for {keep.failed_days:g} days. {held[name]}")
                continue
            if self._studies.is_open(name) or not jobs or not all(job.ended for job in jobs):
                continue
            failed = any(job.state == "failed" for job in jobs) or self._inbox.conflict(name) is not None
            seconds = keep.failed_days * 86400 if failed else keep.hours * 3600
            if now - max(job.changed for job in jobs) > seconds and self._work.forget(name, jobs):
                self._audit.tell("purged", study=name, why=f"{seconds / 3600:g} hours after its last job")
        # Of what was fetched it is remembered for as long as an archive may offer it.
        days = max((poll.days for poll in self._config.polls), default=0) + 2
        for job in self._queue.jobs("done", "failed", "cancelled", before=now - days * 86400):
            if job.queue in (FETCH, PURGE):
                self._queue.forget(job.id)
        there = list(self._work.results.iterdir())  # before the jobs, so that none of them is younger than its job
        known = {job.id for job in self._queue.jobs(queue=SEGMENT)}
        for folder in there:
            if folder.name not in known:
                delete(folder, overwrite=keep.overwrite)
        return max(1.0, min(TIDYING, keep.hours * 3600))
