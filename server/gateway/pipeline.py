"""What the jobs of the other kinds do (:mod:`server.gateway.job_kinds`): fetch, segment, deliver, and forget it all.

Each puts the next ones into the queue before it ends, under keys that say what they are about: one that is killed
half-way and begins again finds what it has put in already.
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

CONFLICT_RECHECK_SECONDS = 30.0  # seconds after which a job looks again whether an operator has decided


class Pipeline:
    """The work of each kind; its methods are run by workers."""

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
        """Make the folder of results; no work begins.

        Args:
            context: The gateway's parts.
            inference: Requests to the servers.
            commitments: Reports of storage commitment from archives.
            retries: Delays of jobs that are tried again.
            is_open: Function that returns True while something of a study is arriving.
            complete: Function that is told that a study is complete, and why.
        """
        self._config, self._queue, self._instance_store = context.config, context.queue, context.instance_store
        self._audit, self._wake = context.audit, context.wake
        self._inference, self._commitments, self._retries = inference, commitments, retries
        self._is_open, self._complete = is_open, complete
        self.results = context.config.state / RESULTS_FOLDER
        self.results.mkdir(exist_ok=True)

    def fetch(self, task: RunningJob) -> dict[str, Any]:
        """Bring a study from an archive that is asked."""
        job, told = task.job, task.job.payload
        poll = next((poll for poll in self._config.polls if poll.url == told["url"]), None)
        if poll is None:
            raise JobFailed(f"The configuration does not ask {told['url']} any more.")
        try:
            count = fetch_study(poll, told["uid"], self._instance_store, task.cancelled)
        except FetchError as error:
            raise self._retries.retry(job, str(error)) from None
        self._audit.record("fetched", study=told["study"], job=job.id, sender=poll.name, instances=count)
        if (conflict := self._instance_store.find_conflict(told["study"])) is not None:
            self._audit.record("conflict", sender=poll.name, study=told["study"], attributes=conflict.attributes)
        self._complete(told["study"], f"all {count} instances that {poll.name} has were fetched")
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
            raise JobPostponed("The result before it is being made.", after=RECHECK_SECONDS)
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
            # A series that an operator had segmented again is delivered again, whatever became of the first delivery.
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
        # What it has is not sent again, and what it refused the last time goes last.
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
        """Delete a study, its results and its jobs, unless something of it is arriving or being worked on.

        A study that an archive listed is new afterwards, and is fetched again while the archive lists it, unless the
        job says ``for_good``.
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
            raise JobPostponed("Something of the study is being worked on.", after=1.0)
        if not self.delete_study(name, jobs):
            raise JobFailed("Something of the study is arriving; purge it when it is complete.")
        if told.get("fetch_again"):
            for job in fetches:
                self._queue.delete(job.id)
        self._audit.record("purged", study=name, why=task.job.payload["why"])
        return {}

    def delete_study(self, name: str, jobs: list[QueuedJob]) -> bool:
        """Delete a study and what its ``jobs`` left; False when something of it is arriving."""
        if not self._instance_store.remove(name, lambda: self._is_open(name), overwrite=self._config.keep.overwrite):
            return False
        for job in jobs:
            delete(self.results / job.id, overwrite=self._config.keep.overwrite)
            self._queue.delete(job.id)
        return True

    def _require_one_patient(self, study: str) -> None:
        """Wait while an operator has to decide of which patient a study is: its result may be another patient's."""
        if self._config.complete.patients == "hold" and self._instance_store.is_of_two_patients(study):
            raise JobPostponed(
                "The study has instances of two patients, and waits for a decision.", after=CONFLICT_RECHECK_SECONDS
            )

    def _superseded(self, job: QueuedJob, earlier: list[QueuedJob], files: dict[str, list[str]]) -> list[str]:
        """Mark a result as superseding earlier ones, and stop deliveries of those that have not begun.

        Returns:
            The jobs whose results an archive may have.
        """
        if not earlier:
            return []
        there = set()
        for delivery in self._queue.jobs(queue=DELIVER, owner=job.payload["study"]):
            if delivery.payload["of"] not in {one.id for one in earlier}:
                continue
            if not delivery.ended:  # one that is running ends with its present try
                self._queue.stop(delivery.id)
                self._audit.record("superseded", study=job.payload["study"], job=delivery.id, by=job.id)
            # One that was tried may have brought a part of it.
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
