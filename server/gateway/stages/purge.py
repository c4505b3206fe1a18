"""Jobs of the kind `purge`: delete a study, its results and its jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.gateway.context import RECHECK_SECONDS, GatewayContext
from server.gateway.instance_store import delete
from server.gateway.job_kinds import FETCH, PURGE
from server.gateway.job_payloads import PurgePayload
from server.jobs.queue import QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob


class PurgeStage:
    """Deletes studies; thread-safe."""

    def __init__(self, context: GatewayContext, *, is_open: Callable[[str], bool]) -> None:
        """Configure the stage.

        Args:
            context: Shared objects of the gateway.
            is_open: Function that returns True while instances of a study are arriving.
        """
        self._config, self._queue, self._instance_store = context.config, context.queue, context.instance_store
        self._audit, self._results, self._is_open = context.audit, context.results, is_open

    def run(self, task: RunningJob) -> dict[str, Any]:
        """Delete a study, its results and its jobs, unless instances of it are arriving or a job is running."""
        order = PurgePayload.from_job(task.job)
        fetches = self._queue.jobs(queue=FETCH, owner=order.study)
        for job in fetches:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in fetches):
            raise JobPostponed("The study is being fetched.", after=RECHECK_SECONDS)
        jobs = [job for job in self._queue.jobs(owner=order.study) if job.queue not in (FETCH, PURGE)]
        for job in jobs:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in jobs):
            raise JobPostponed("Another job of the study is running.", after=RECHECK_SECONDS)
        if not self.delete_study(order.study, jobs):
            raise JobFailed("Instances of the study are arriving; purge it when it is complete.")
        if order.fetch_again:
            for job in fetches:
                self._queue.delete(job.id)
        self._audit.record("purged", study=order.study, why=order.why)
        return {}

    def delete_study(self, name: str, jobs: list[QueuedJob]) -> bool:
        """Delete a study, its ``jobs`` and their results; return False if instances of it are arriving."""
        overwrite = self._config.retention.overwrite
        if not self._instance_store.remove(name, lambda: self._is_open(name), overwrite=overwrite):
            return False
        for job in jobs:
            delete(self._results / job.id, overwrite=overwrite)
            self._queue.delete(job.id)
        return True
