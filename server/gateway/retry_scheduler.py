"""Retries of jobs that failed because of another system: with growing delays, shared by jobs with the same cause."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from semiseg.errors import Cancelled
from server.gateway.backoff import Backoff, retry_delay
from server.gateway.config import Retry
from server.gateway.context import GatewayContext
from server.gateway.delivery_result import DeliveryResult
from server.gateway.inference_client import ServersUnavailable
from server.gateway.job_kinds import DELIVER, SEGMENT
from server.jobs.database import QueueError
from server.jobs.lanes import Lane
from server.jobs.queue import JobState, QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob

# Extra delay of the job that found a destination unavailable, so that others are tried first.
YIELD_SECONDS = 1.5

_LOG = logging.getLogger("semiseg.gateway")


class RetryScheduler:
    """Delays of single jobs, of each destination, and of all jobs that wait for servers; thread-safe.

    Attributes:
        backoffs: Common delay of each destination, by name.
    """

    def __init__(self, context: GatewayContext, *, ended: Callable[[QueuedJob, JobState], None]) -> None:
        """Start without failures; ``ended`` is called for each job that fails while no worker holds it."""
        config = context.config
        self._config, self._queue, self._audit, self._wake = config, context.queue, context.audit, context.wake
        self._ended = ended
        self.backoffs = {name: Backoff(one.retry or config.retry) for name, one in config.destinations.items()}
        self._no_server = False

    def retry_unexpected(self, work: Callable[[RunningJob], dict[str, Any]]) -> Callable[[RunningJob], dict[str, Any]]:
        """Wrap ``work`` so that the job is retried later after an unexpected error."""

        def worked(task: RunningJob) -> dict[str, Any]:
            try:
                return work(task)
            except (JobFailed, JobPostponed, Cancelled, QueueError):
                raise
            except Exception as error:  # noqa: BLE001 - one study must not stop the others
                _LOG.error("A job of the kind %s failed", task.job.queue, exc_info=True)
                name = type(error).__name__
                raise self.retry(task.job, f"An unexpected error occurred ({name}); see the log.") from None

        return worked

    def servers_unavailable(self, job: QueuedJob, error: ServersUnavailable) -> JobPostponed | JobFailed:
        """Schedule the next attempt of a scan that no server accepts now."""
        self._no_server = self._no_server or error.of_servers
        return self.retry(job, str(error), error.seconds, held=error.of_servers)

    def retry(
        self,
        job: QueuedJob,
        sentence: str,
        at_least: float = 0.0,
        *,
        payload: dict[str, Any] | None = None,
        held: bool = False,
    ) -> JobPostponed | JobFailed:
        """Schedule the next attempt of a job with a growing delay, or let it fail after the configured hours."""
        retry = self._retry_of(job)
        tries = job.payload.get("tries", 0) + 1
        delay = retry_delay(tries, retry, at_least)
        return self._postponed(job, sentence, delay, (payload or job.payload) | {"held": held})

    def _postponed(
        self, job: QueuedJob, sentence: str, delay: float, payload: dict[str, Any]
    ) -> JobPostponed | JobFailed:
        tries, waited = payload.get("tries", 0) + 1, payload.get("waited", 0.0)
        retry = self._retry_of(job)
        if waited > retry.hours * 3600:
            return JobFailed(_given_up(tries, retry.hours, sentence))
        to = {"to": payload["to"]} if job.queue == DELIVER else {}
        self._audit.record(
            "failed",
            study=payload.get("study", ""),
            job=job.id,
            kind=job.queue,
            **to,
            tries=tries,
            why=sentence,
            again_in=round(delay, 1),
        )
        # Delays are added up instead of comparing times, because the clock may be set and the gateway may be stopped.
        payload = payload | {"tries": tries, "waited": waited + delay, "trouble": sentence}
        return JobPostponed(sentence, after=delay, payload=payload)

    def destination_unavailable(
        self, job: QueuedJob, name: str, payload: dict[str, Any], outcome: DeliveryResult
    ) -> JobPostponed | JobFailed:
        """Schedule the next attempt of a delivery after its destination failed, and delay all jobs that wait for it."""
        sentence, retry = outcome.describe(), self._retry_of(job)
        was_ready = self.backoffs[name].ready()
        delay = self.backoffs[name].record_failure(outcome.trouble, outcome.retry_after_seconds)
        if was_ready:  # once, even if several jobs fail at the same time
            self._queue.change_waiting(
                DELIVER,
                lambda one: (
                    one.payload
                    | {
                        "tries": one.payload.get("tries", 0) + 1,
                        "waited": one.payload.get("waited", 0.0) + delay,
                        "trouble": outcome.trouble,
                        "held": True,
                    }
                ),
                lane=Lane("to", (name,)),
            )
            for one in self._queue.jobs("waiting", queue=DELIVER):
                if one.payload["to"] == name and one.payload.get("waited", 0.0) > retry.hours * 3600:
                    told = _given_up(one.payload["tries"], retry.hours, outcome.trouble)
                    if self._queue.fail_waiting(one.id, {"error": told}):
                        self._ended(one, "failed")
        # After the delay another result is tried first, in case this one causes the failure.
        return self._postponed(job, sentence, delay + min(delay, YIELD_SECONDS), payload | {"held": True})

    def destination_recovered(self, name: str) -> None:
        """Record that a destination works; jobs that waited for it are tried at once."""
        if self.backoffs[name].record_success():
            self.release_held(DELIVER, Lane("to", (name,)))
            self._audit.record("destination answers again", to=name)

    def servers_recovered(self) -> None:
        """Record that a server works; jobs that waited for the servers are tried at once."""
        if self._no_server:
            self._no_server = False
            self.release_held(SEGMENT)

    def release_held(self, kind: str, lane: Lane | None = None) -> None:
        """Release all jobs of a kind that wait for a destination or for the servers, so that they are tried at once."""
        self._queue.change_waiting(
            kind,
            lambda job: (
                {k: v for k, v in job.payload.items() if k not in ("tries", "trouble", "held")}
                if job.payload.get("held")
                else None
            ),
            lane=lane,
            at_once=True,
        )
        self._wake(kind)

    def _retry_of(self, job: QueuedJob) -> Retry:
        backoff = self.backoffs.get(job.payload["to"]) if job.queue == DELIVER else None
        return self._config.retry if backoff is None else backoff.retry


def _given_up(tries: int, hours: float, sentence: str) -> str:
    return f"Given up after {tries} attempts in {hours:g} hours. {sentence}"
