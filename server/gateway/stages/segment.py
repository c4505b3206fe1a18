"""Jobs of the kind `segment`: have a scan segmented by a server, and queue the deliveries of its results."""

from __future__ import annotations

from typing import Any

from semiseg.errors import Cancelled, InputError
from server.gateway.context import RECHECK_SECONDS, GatewayContext
from server.gateway.inference_client import InferenceClient, ServersUnavailable
from server.gateway.job_kinds import DELIVER, SEGMENT
from server.gateway.job_payloads import DeliverPayload, SegmentPayload
from server.gateway.retry_scheduler import RetryScheduler
from server.gateway.supersession import earlier_jobs, mark_superseding
from server.jobs.queue import QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob


class SegmentStage:
    """Sends scans to servers; thread-safe."""

    def __init__(self, context: GatewayContext, inference: InferenceClient, retries: RetryScheduler) -> None:
        """Configure the stage.

        Args:
            context: Shared objects of the gateway.
            inference: Client of the servers.
            retries: Delays of jobs that are retried.
        """
        self._context, self._queue, self._instance_store = context, context.queue, context.instance_store
        self._audit, self._wake, self._results = context.audit, context.wake, context.results
        self._inference, self._retries = inference, retries

    def run(self, task: RunningJob) -> dict[str, Any]:
        """Have one scan segmented, and queue a `deliver` job for each destination."""
        job, scan = task.job, SegmentPayload.from_job(task.job)
        folder = self._results / job.id
        files = [self._instance_store.studies / scan.study / name for name in scan.files]
        if not all(file.exists() for file in files):
            raise JobFailed("The study is not here any more.")
        self._context.require_one_patient(scan.study)
        earlier = earlier_jobs(self._queue, SEGMENT, job)
        if any(one.state == "running" for one in earlier):
            raise JobPostponed("The previous result of the series is being made.", after=RECHECK_SECONDS)
        folder.mkdir(exist_ok=True)
        try:
            made = self._inference.segment(files, scan.forms, scan.model, folder, task.cancelled)
        except ServersUnavailable as error:
            raise self._retries.servers_unavailable(job, error) from None
        except InputError as error:
            self._retries.servers_recovered()
            raise JobFailed(str(error)) from None
        self._retries.servers_recovered()
        if task.cancelled():
            raise Cancelled("The job was stopped.")
        superseded = self._supersede(job, earlier, made.files)
        put = []
        for destination, forms in scan.to.items():
            delivery = DeliverPayload(
                study=scan.study,
                rule=scan.rule,
                of=job.id,
                files=[file for form in forms for file in made.files[form]],
                to=destination,
            )
            # A series that an operator had segmented again is delivered again, whatever the first delivery's state.
            key = f"{job.key} {destination}" + (f" again {scan.again}" if scan.again else "")
            put.append(self._queue.put(DELIVER, delivery.to_json(), key=key, owner=scan.study).id)
        self._wake(DELIVER)
        self._audit.record(
            "segmented",
            study=scan.study,
            job=job.id,
            rule=scan.rule,
            server=made.server,
            jobs=put,
            supersedes=superseded,
            **made.metadata,
            **scan.audit_fields(),
        )
        return {"server": made.server, "files": made.files, "jobs": put, **made.metadata}

    def _supersede(self, job: QueuedJob, earlier: list[QueuedJob], files: dict[str, list[str]]) -> list[str]:
        """Mark a result as superseding earlier ones, and stop deliveries of earlier ones that have not begun.

        Returns:
            Identifiers of the jobs whose results an archive may have.
        """
        if not earlier:
            return []
        study, there = SegmentPayload.from_job(job).study, set()
        for one in self._queue.jobs(queue=DELIVER, owner=study):
            delivery = DeliverPayload.from_job(one)
            if delivery.of not in {before.id for before in earlier}:
                continue
            if not one.ended:  # a running one ends with its present attempt
                self._queue.stop(one.id)
                self._audit.record("superseded", study=study, job=one.id, by=job.id)
            # A delivery that was tried may have sent a part of the result.
            if one.state != "cancelled" and (one.state != "waiting" or delivery.tries):
                there.add(delivery.of)
        known = [one for one in earlier if one.id in there and one.state == "done"]
        if known:
            before = [
                self._results / known[-1].id / name for names in known[-1].result["files"].values() for name in names
            ]
            mark_superseding(
                [self._results / job.id / name for names in files.values() for name in names],
                [file for file in before if file.exists()],
                len(known) + 1,
            )
        return [one.id for one in known]
