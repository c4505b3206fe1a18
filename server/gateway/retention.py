"""Deletion of finished studies after their retention time, of old jobs, and of results without a job."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.gateway.context import GatewayContext
from server.gateway.instance_store import delete
from server.gateway.job_kinds import FETCH, PURGE, SEGMENT
from server.gateway.stages.purge import PurgeStage
from server.gateway.study_tracker import StudyTracker

CHECK_SECONDS = 60.0  # seconds between two runs


class RetentionTask:
    """Deletes studies, jobs and results that have exceeded their retention time."""

    def __init__(
        self, context: GatewayContext, studies: StudyTracker, purge: PurgeStage, *, is_claimed: Callable[[str], bool]
    ) -> None:
        """Configure the task by `retention` of the configuration; nothing is deleted yet.

        Args:
            context: Shared objects of the gateway.
            studies: Tracker of the studies that are arriving or held.
            purge: Stage that deletes a study with its jobs and results.
            is_claimed: Function that returns True for the name of a claimed workitem, whose inputs stay.
        """
        self._config, self._queue, self._instance_store = context.config, context.queue, context.instance_store
        self._audit, self._results = context.audit, context.results
        self._studies, self._purge, self._is_claimed = studies, purge, is_claimed

    def delete_expired(self) -> float:
        """Delete what has exceeded its retention time.

        Returns:
            Seconds until the next run.
        """
        keep, now, held = self._config.retention, time.time(), self._studies.held_reasons()
        for name in self._instance_store.study_names():
            if self._is_claimed(name):
                continue
            jobs = [job for job in self._queue.jobs(owner=name) if job.queue not in (FETCH, PURGE)]
            if name in held and all(job.ended for job in jobs):
                seconds = keep.failed_days * 86400
                if now - self._instance_store.last_change(name) > seconds and self._purge.delete_study(name, jobs):
                    self._audit.record("purged", study=name, why=f"held for {keep.failed_days:g} days. {held[name]}")
                continue
            if self._studies.is_open(name) or not jobs or not all(job.ended for job in jobs):
                continue
            failed = any(job.state == "failed" for job in jobs) or self._instance_store.find_conflict(name) is not None
            seconds = keep.failed_days * 86400 if failed else keep.hours * 3600
            if now - max(job.changed for job in jobs) > seconds and self._purge.delete_study(name, jobs):
                self._audit.record("purged", study=name, why=f"{seconds / 3600:g} hours after its last job")
        # Finished fetches are remembered as long as an archive may list their study, so that it is not fetched again.
        days = max((poll.days for poll in self._config.polls), default=0) + 2
        for job in self._queue.jobs("done", "failed", "cancelled", before=now - days * 86400):
            if job.queue in (FETCH, PURGE):
                self._queue.delete(job.id)
        there = list(self._results.iterdir())  # before the jobs, so that the job of each folder is found
        known = {job.id for job in self._queue.jobs(queue=SEGMENT)}
        for folder in there:
            if folder.name not in known:
                delete(folder, overwrite=keep.overwrite)
        return max(1.0, min(CHECK_SECONDS, keep.hours * 3600))
