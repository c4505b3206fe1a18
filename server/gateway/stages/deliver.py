"""Jobs of the kind `deliver`: send the results of a scan to one destination, until it has confirmed every file."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from semiseg.errors import InputError
from server.gateway.commitment_scu import CommitmentReports
from server.gateway.context import GatewayContext
from server.gateway.delivery_result import DeliveryResult
from server.gateway.destinations.destination import Delivery
from server.gateway.job_payloads import DeliverPayload
from server.gateway.retry_scheduler import RetryScheduler
from server.jobs.worker import JobFailed, RunningJob


class DeliverStage:
    """Sends results to destinations; thread-safe."""

    def __init__(self, context: GatewayContext, commitments: CommitmentReports, retries: RetryScheduler) -> None:
        """Configure the stage.

        Args:
            context: Shared objects of the gateway.
            commitments: Reports of storage commitment from archives.
            retries: Delays of jobs that are retried, and of destinations.
        """
        self._context, self._config, self._audit = context, context.config, context.audit
        self._results, self._commitments, self._retries = context.results, commitments, retries

    def run(self, task: RunningJob) -> dict[str, Any]:
        """Send the files that the destination has not confirmed yet; those that it refused last time are sent last."""
        job, result = task.job, DeliverPayload.from_job(task.job)
        destination = self._config.destinations.get(result.to)
        if destination is None:
            raise self._retries.retry(job, f"The configuration has no destination {result.to} any more.")
        self._context.require_one_patient(result.study)
        taken = list(result.taken)
        names = sorted((name for name in result.files if name not in taken), key=lambda name: name in result.refused)
        files = [self._results / result.of / name for name in names]
        if not all(file.exists() for file in files):
            raise JobFailed("The results are not here any more; have the series segmented again.")
        try:
            outcome = destination.deliver(files, Delivery(self._config.ae_title, self._commitments, task.cancelled))
        except InputError as error:
            outcome = DeliveryResult(trouble=str(error))
        taken += outcome.confirmed
        since = (result.refused_since or time.time()) if outcome.refused else result.refused_since
        rest = dataclasses.replace(result, taken=taken, refused=list(outcome.refused), refused_since=since)
        record: dict[str, Any] = {"study": result.study, "job": job.id, "to": result.to, **result.audit_fields()}
        if outcome.warnings:
            record["remarks"] = outcome.warnings
        missing = len(result.files) - len(taken)
        if outcome.confirmed and missing:
            self._audit.record("delivered in part", **record, instances=len(outcome.confirmed), missing=missing)
        if outcome.trouble:
            raise self._retries.destination_unavailable(job, rest, outcome)
        self._retries.destination_recovered(result.to)
        if missing:
            raise self._retries.retry(job, outcome.describe(), payload=rest)
        self._audit.record("delivered", **record, instances=len(taken))
        return {"instances": len(taken)}
