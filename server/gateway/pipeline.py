"""Jobs of the kinds `fetch`, `segment`, `deliver` and `purge` (:mod:`server.gateway.job_kinds`).

Each job adds the jobs that follow it to the queue before it ends, under keys derived from their content, so that a job
that was killed and starts again does not add them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from semiseg.errors import Cancelled, InputError
from server.gateway.context import GatewayContext
from server.gateway.delivery import CommitmentReports, deliver_files
from server.gateway.delivery_result import DeliveryResult
from server.gateway.inference_client import InferenceClient, ServersUnavailable
from server.gateway.instance_store import delete
from server.gateway.job_kinds import DELIVER, FETCH, PURGE, RESULTS_FOLDER, SEGMENT, repeat_field
from server.gateway.retrieval import FetchError, fetch_study
from server.gateway.retry_scheduler import RetryScheduler
from server.gateway.study_router import RECHECK_SECONDS
from server.gateway.supersession import earlier_jobs, mark_superseding
from server.jobs.queue import QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob

CONFLICT_RECHECK_SECONDS = 30.0  # seconds after which a job checks again whether an operator has decided


class Pipeline:
    """Handlers of the jobs, which are called by workers."""

    def __init__(
        self,
        context: GatewayContext,
        inference: InferenceClient,
        commitments: CommitmentReports,
        retries: RetryScheduler,
        *,
        is_open: Callable[[str], bool],
        complete: Callable[[str, str], None],
    ) -> None:
        """Create the folder of results; no job is started.

        Args:
            context: Shared objects of the gateway.
            inference: Client of the servers.
            commitments: Reports of storage commitment from archives.
            retries: Delays of jobs that are retried.
            is_open: Function that returns True while instances of a study are arriving.
            complete: Function that is called with the name of a complete study and the reason.
        """
        self._config, self._queue, self._instance_store = context.config, context.queue, context.instance_store
        self._audit, self._wake = context.audit, context.wake
        self._inference, self._commitments, self._retries = inference, commitments, retries
        self._is_open, self._complete = is_open, complete
        self.results = context.config.state / RESULTS_FOLDER
        self.results.mkdir(exist_ok=True)

    def fetch(self, task: RunningJob) -> dict[str, Any]:
        """Retrieve a study from a polled archive."""
        job, told = task.job, task.job.payload
        poll = next((poll for poll in self._config.polls if poll.url == told["url"]), None)
        if poll is None:
            raise JobFailed(f"The configuration does not poll {told['url']} any more.")
        try:
            count = fetch_study(poll, told["uid"], self._instance_store, task.cancelled)
        except FetchError as error:
            raise self._retries.retry(job, str(error)) from None
        self._audit.record("fetched", study=told["study"], job=job.id, sender=poll.name, instances=count)
        if (conflict := self._instance_store.find_conflict(told["study"])) is not None:
            self._audit.record("conflict", sender=poll.name, study=told["study"], attributes=conflict.attributes)
        self._complete(told["study"], f"all {count} instances at {poll.name} were fetched")
        return {"instances": count}

    def segment(self, task: RunningJob) -> dict[str, Any]:
        """Have one scan segmented."""
        job, told = task.job, task.job.payload
        folder = self.results / job.id
        files = [self._instance_store.studies / told["study"] / name for name in told["files"]]
        if not all(file.exists() for file in files):
            raise JobFailed("The study is not here any more.")
        self._require_one_patient(told["study"])
        earlier = earlier_jobs(self._queue, SEGMENT, job)
        if any(one.state == "running" for one in earlier):
            raise JobPostponed("The previous result of the series is being made.", after=RECHECK_SECONDS)
        folder.mkdir(exist_ok=True)
        try:
            made = self._inference.segment(files, told["forms"], told["model"], folder, task.cancelled)
        except ServersUnavailable as error:
            raise self._retries.servers_unavailable(job, error) from None
        except InputError as error:
            self._retries.servers_recovered()
            raise JobFailed(str(error)) from None
        self._retries.servers_recovered()
        if task.cancelled():
            raise Cancelled("The job was stopped.")
        superseded = self._superseded(job, earlier, made.files)
        put = []
        for destination, forms in told["to"].items():
            payload = {
                "study": told["study"],
                "rule": told["rule"],
                "of": job.id,
                "files": [file for form in forms for file in made.files[form]],
                "to": destination,
            }
            # A series that an operator had segmented again is delivered again, whatever the first delivery's state.
            key = f"{job.key} {destination}" + (f" again {told['again']}" if told.get("again") else "")
            put.append(self._queue.put(DELIVER, payload, key=key, owner=told["study"]).id)
        self._wake(DELIVER)
        self._audit.record(
            "segmented",
            study=told["study"],
            job=job.id,
            rule=told["rule"],
            server=made.server,
            jobs=put,
            supersedes=superseded,
            **made.metadata,
            **repeat_field(job),
        )
        return {"server": made.server, "files": made.files, "jobs": put, **made.metadata}

    def deliver(self, task: RunningJob) -> dict[str, Any]:
        """Send results to one archive."""
        job, told = task.job, task.job.payload
        destination = self._config.destinations.get(told["to"])
        if destination is None:
            raise self._retries.retry(job, f"The configuration has no destination {told['to']} any more.")
        self._require_one_patient(told["study"])
        # Stored files are not sent again, and files that were refused the last time are sent last.
        taken, refused = list(told.get("taken", ())), told.get("refused", ())
        names = sorted((name for name in told["files"] if name not in taken), key=lambda name: name in refused)
        files = [self.results / told["of"] / name for name in names]
        if not all(file.exists() for file in files):
            raise JobFailed("The results are not here any more; have the series segmented again.")
        try:
            outcome = deliver_files(files, destination, self._config.ae_title, self._commitments, task.cancelled)
        except InputError as error:
            outcome = DeliveryResult(trouble=str(error))
        taken += outcome.confirmed
        payload = told | {"taken": taken, "refused": list(outcome.refused)}
        if outcome.refused:
            payload["refused_since"] = told.get("refused_since") or time.time()
        told_of = {"study": told["study"], "job": job.id, "to": told["to"], **repeat_field(job)}
        if outcome.warnings:
            told_of["remarks"] = outcome.warnings
        missing = len(told["files"]) - len(taken)
        if outcome.confirmed and missing:
            self._audit.record("delivered in part", **told_of, instances=len(outcome.confirmed), missing=missing)
        if outcome.trouble:
            raise self._retries.destination_unavailable(job, told["to"], payload, outcome)
        self._retries.destination_recovered(told["to"])
        if missing:
            raise self._retries.retry(job, outcome.describe(), payload=payload)
        self._audit.record("delivered", **told_of, instances=len(taken))
        return {"instances": len(taken)}

    def purge(self, task: RunningJob) -> dict[str, Any]:
        """Delete a study, its results and its jobs, unless instances of it are arriving or a job is running.

        If the payload has ``fetch_again``, the fetch jobs are deleted, too, so that an archive that still lists the
        study is asked for it again.
        """
        name, told = task.job.payload["study"], task.job.payload
        fetches = self._queue.jobs(queue=FETCH, owner=name)
        for job in fetches:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in fetches):
            raise JobPostponed("The study is being fetched.", after=RECHECK_SECONDS)
        jobs = [job for job in self._queue.jobs(owner=name) if job.queue not in (FETCH, PURGE)]
        for job in jobs:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in jobs):
            raise JobPostponed("Another job of the study is running.", after=1.0)
        if not self.delete_study(name, jobs):
            raise JobFailed("Instances of the study are arriving; purge it when it is complete.")
        if told.get("fetch_again"):
            for job in fetches:
                self._queue.delete(job.id)
        self._audit.record("purged", study=name, why=task.job.payload["why"])
        return {}

    def delete_study(self, name: str, jobs: list[QueuedJob]) -> bool:
        """Delete a study, its ``jobs`` and their results; return False if instances of it are arriving."""
        if not self._instance_store.remove(name, lambda: self._is_open(name), overwrite=self._config.keep.overwrite):
            return False
        for job in jobs:
            delete(self.results / job.id, overwrite=self._config.keep.overwrite)
            self._queue.delete(job.id)
        return True

    def _require_one_patient(self, study: str) -> None:
        """Postpone the job while an operator has to decide which patient a study belongs to."""
        if self._config.complete.patients == "hold" and self._instance_store.is_of_two_patients(study):
            raise JobPostponed(
                "The study has instances of two patients, and waits for a decision.", after=CONFLICT_RECHECK_SECONDS
            )

    def _superseded(self, job: QueuedJob, earlier: list[QueuedJob], files: dict[str, list[str]]) -> list[str]:
        """Mark a result as superseding earlier ones, and stop deliveries of earlier ones that have not begun.

        Returns:
            Identifiers of the jobs whose results an archive may have.
        """
        if not earlier:
            return []
        there = set()
        for delivery in self._queue.jobs(queue=DELIVER, owner=job.payload["study"]):
            if delivery.payload["of"] not in {one.id for one in earlier}:
                continue
            if not delivery.ended:  # a running one ends with its present attempt
                self._queue.stop(delivery.id)
                self._audit.record("superseded", study=job.payload["study"], job=delivery.id, by=job.id)
            # A delivery that was tried may have sent a part of the result.
            if delivery.state != "cancelled" and (delivery.state != "waiting" or delivery.payload.get("tries")):
                there.add(delivery.payload["of"])
        known = [one for one in earlier if one.id in there and one.state == "done"]
        if known:
            before = [
                self.results / known[-1].id / name for names in known[-1].result["files"].values() for name in names
            ]
            mark_superseding(
                [self.results / job.id / name for names in files.values() for name in names],
                [file for file in before if file.exists()],
                len(known) + 1,
            )
        return [one.id for one in known]
