"""Retries of jobs that failed because of another system: with growing delays, shared by jobs with the same cause."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from semiseg.errors import Cancelled
from server.gateway.backoff import Backoff, retry_delay
from server.gateway.config_types import Retry
from server.gateway.context import GatewayContext
from server.gateway.delivery_result import DeliveryResult
from server.gateway.inference_client import ServersUnavailable
from server.gateway.job_kinds import DELIVER, SEGMENT
from server.gateway.job_payloads import DeliverPayload, JobPayload, UnreadablePayload, payload_of, readable_payload_of
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
                payload_of(task.job)
            except UnreadablePayload as error:  # a retry would not help, and needs the payload, too
                raise JobFailed(str(error)) from None
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
        payload: JobPayload | None = None,
        held: bool = False,
    ) -> JobPostponed | JobFailed:
        """Schedule the next attempt of a job with a growing delay, or let it fail after the configured hours."""
        payload = payload or payload_of(job)
        delay = retry_delay(payload.tries + 1, self._retry_of(payload), at_least)
        return self._postponed(job, sentence, delay, payload, held=held)

    def _postponed(
        self, job: QueuedJob, sentence: str, delay: float, payload: JobPayload, *, held: bool
    ) -> JobPostponed | JobFailed:
        retry, later = self._retry_of(payload), payload.after_failure(sentence, delay, held=held)
        if payload.waited > retry.hours * 3600:
            return JobFailed(_given_up(later.tries, retry.hours, sentence))
        to = {"to": payload.to} if isinstance(payload, DeliverPayload) else {}
        self._audit.record(
            "failed",
            study=payload.study,
            job=job.id,
            kind=job.queue,
            **to,
            tries=later.tries,
            why=sentence,
            again_in=round(delay, 1),
        )
        return JobPostponed(sentence, after=delay, payload=later.to_json())

    def destination_unavailable(
        self, job: QueuedJob, payload: DeliverPayload, outcome: DeliveryResult
    ) -> JobPostponed | JobFailed:
        """Schedule the next attempt of a delivery after its destination failed, and delay all jobs that wait for it."""
        name, sentence, retry = payload.to, outcome.describe(), self._retry_of(payload)
        was_ready = self.backoffs[name].ready()
        delay = self.backoffs[name].record_failure(outcome.trouble, outcome.retry_after_seconds)
        if was_ready:  # once, even if several jobs fail at the same time

            def held_back(one: QueuedJob) -> dict[str, Any] | None:
                other = readable_payload_of(one)
                if not isinstance(other, DeliverPayload):
                    return None
                return other.after_failure(outcome.trouble, delay, held=True).to_json()

            self._queue.change_waiting(DELIVER, held_back, lane=Lane("to", (name,)))
            for one in self._queue.jobs("waiting", queue=DELIVER):
                other = readable_payload_of(one)
                if isinstance(other, DeliverPayload) and other.to == name and other.waited > retry.hours * 3600:
                    told = _given_up(other.tries, retry.hours, outcome.trouble)
                    if self._queue.fail_waiting(one.id, {"error": told}):
                        self._ended(one, "failed")
        # After the delay another result is tried first, in case this one causes the failure.
        return self._postponed(job, sentence, delay + min(delay, YIELD_SECONDS), payload, held=True)

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

        def released(job: QueuedJob) -> dict[str, Any] | None:
            payload = readable_payload_of(job)
            if not payload.held or type(payload) is JobPayload:
                return None
            return dataclasses.replace(payload, tries=0, trouble="", held=False).to_json()

        self._queue.change_waiting(kind, released, lane=lane, at_once=True)
        self._wake(kind)

    def _retry_of(self, payload: JobPayload) -> Retry:
        backoff = self.backoffs.get(payload.to) if isinstance(payload, DeliverPayload) else None
        return self._config.retry if backoff is None else backoff.retry


def _given_up(tries: int, hours: float, sentence: str) -> str:
    return f"Given up after {tries} attempts in {hours:g} hours. {sentence}"
