"""Jobs of the kind `fetch`: retrieve a study from a polled archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.gateway.context import GatewayContext
from server.gateway.job_payloads import FetchPayload
from server.gateway.retrieval import FetchError, fetch_study
from server.gateway.retry_scheduler import RetryScheduler
from server.jobs.worker import JobFailed, RunningJob


class FetchStage:
    """Retrieves studies; thread-safe."""

    def __init__(
        self, context: GatewayContext, retries: RetryScheduler, *, complete: Callable[[str, str], None]
    ) -> None:
        """Configure the stage.

        Args:
            context: Shared objects of the gateway.
            retries: Delays of jobs that are retried.
            complete: Function that is called with the name of a complete study and the reason.
        """
        self._config, self._instance_store, self._audit = context.config, context.instance_store, context.audit
        self._retries, self._complete = retries, complete

    def run(self, task: RunningJob) -> dict[str, Any]:
        """Retrieve all instances of a study, or none."""
        job, wanted = task.job, FetchPayload.from_job(task.job)
        poll = next((poll for poll in self._config.polls if poll.url == wanted.url), None)
        if poll is None:
            raise JobFailed(f"The configuration does not poll {wanted.url} any more.")
        try:
            count = fetch_study(poll, wanted.uid, self._instance_store, task.cancelled)
        except FetchError as error:
            raise self._retries.retry(job, str(error)) from None
        self._audit.record("fetched", study=wanted.study, job=job.id, sender=poll.name, instances=count)
        if (conflict := self._instance_store.find_conflict(wanted.study)) is not None:
            self._audit.record("conflict", sender=poll.name, study=wanted.study, attributes=conflict.attributes)
        self._complete(wanted.study, f"all {count} instances at {poll.name} were fetched")
        return {"instances": count}
