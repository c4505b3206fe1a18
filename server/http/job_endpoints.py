"""The endpoints below /jobs: a scan is queued, segmented later, and its result kept until it is deleted or expires."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from semiseg.errors import Cancelled
from semiseg.inference.timing import Timing
from semiseg.outputs.formats import present_name
from semiseg.outputs.report import ScanWarningReport
from semiseg.system.memory import release_free_memory
from server.forwarded_headers import path_prefix
from server.http.errors import api_error_response, to_api_error
from server.http.idempotency import request_digest, validate_idempotency_key
from server.http.job_payload import JobPayload
from server.http.job_store import JOB_QUEUE, VIEWER_BUNDLE, JobStore
from server.http.limits import RETRY_SECONDS, ApiError
from server.http.result_headers import MILLILITRES_HEADER, REMARKS_HEADER, limit_header_sizes
from server.http.results import EncodedResult, convert_result, segment_scan
from server.http.schemas import JobResponse
from server.http.segmentation_request import SegmentationRequest
from server.http.upload_handler import ReceivedUpload, UploadHandler, client_identity, key_owner
from server.jobs.deletion import remove
from server.jobs.fair_limiter import FairLimiter
from server.jobs.lanes import Lane
from server.jobs.queue import JobState, QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob, Worker

CLEANUP_INTERVAL = 60.0  # seconds between two searches for expired jobs
EVENT_POLL_INTERVAL = 0.5  # seconds between two reads of a job that a client watches
MAX_WATCHED_JOBS = 64  # jobs that one client may watch at once
KEEPALIVE_SECONDS = 15.0  # seconds of silence after which a comment is sent, for proxies that close idle streams
ADDRESS_QUEUE_SHARE = 0.9  # largest share of the waiting jobs of one address on a server without keys
DISK_FULL_DELAY = 30.0  # seconds until a job is retried that failed on a full disk


class JobEndpoints:
    """The endpoints below /jobs, and the worker that runs the jobs."""

    def __init__(self, handler: UploadHandler, store: JobStore, limiter: FairLimiter) -> None:
        """Create the endpoints; the worker starts when :meth:`lifespan` is entered."""
        self._handler = handler
        self._store = store
        self._limiter = limiter
        self._worker: Worker | None = None
        self._watching: Counter[str] = Counter()
        self._writers = anyio.CapacityLimiter(handler.limits.parallel)

    def routes(self) -> list[Route]:
        """The routes for the application."""
        return [
            Route("/jobs", self._with_error_handling(self._post), methods=["POST"], name="post_job"),
            Route("/jobs/{id}", self._with_error_handling(self._get), methods=["GET"], name="get_job"),
            Route("/jobs/{id}", self._with_error_handling(self._delete), methods=["DELETE"], name="delete_job"),
            Route("/jobs/{id}/result", self._with_error_handling(self._result), methods=["GET"], name="get_result"),
            Route("/jobs/{id}/events", self._with_error_handling(self._events), methods=["GET"], name="watch_job"),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the worker during the block; running jobs return to the queue at its end."""
        self._worker = Worker(
            self._store.queue,
            JOB_QUEUE,
            self._work,
            threads=self._handler.limits.parallel,
            limiter=self._limiter,
            ready=lambda: self._handler.models.ready,
            ended=self._ended,
            fair=True,
        )
        tidying = asyncio.ensure_future(self._tidy())
        try:
            yield
        finally:
            tidying.cancel()
            await anyio.to_thread.run_sync(self._worker.close)
            self._store.queue.close()

    def _work(self, task: RunningJob) -> dict[str, Any]:
        """Run one job in a thread of the worker."""
        timing = Timing()
        folder, until = None, time.monotonic() + self._handler.limits.request_seconds

        def stopped() -> bool:
            return task.cancelled() or time.monotonic() > until

        try:
            upload, folder = self._store.copy_upload(task.job)
            accept = JobPayload.from_job(task.job).accept
            scan_request = SegmentationRequest.from_upload(upload, accept, self._handler.models)
            answer = segment_scan(scan_request, folder, timing, stopped, _ProgressReporter(task).update)
            if stopped():
                raise Cancelled("The job was stopped.")
            result = self._store.save_result(task.job, answer)
        except Cancelled:
            if task.cancelled():
                raise
            seconds = self._handler.limits.request_seconds
            raise JobFailed(f"The scan took longer than the time limit of {seconds:g} seconds.", status=504) from None
        except Exception as error:  # noqa: BLE001 - no error may leave a job, as in UploadHandler.handle
            refusal = to_api_error(error)
            if refusal.status == 507:
                raise JobPostponed(str(refusal), after=DISK_FULL_DELAY) from None
            raise JobFailed(str(refusal), status=refusal.status) from None
        finally:
            if folder is not None:
                remove(folder)
            release_free_memory()
        self._handler.metrics.count_scan(answer.report.model.name, timing)
        return result

    def _ended(self, job: QueuedJob, state: JobState) -> None:
        self._handler.metrics.count_ended_job(state)
        self._store.clean_up(replace(job, state=state))

    async def _tidy(self) -> None:
        keep = self._handler.limits.keep_seconds
        while True:
            with contextlib.suppress(Exception):
                await anyio.to_thread.run_sync(self._store.delete_expired, keep)
            await asyncio.sleep(min(CLEANUP_INTERVAL, keep))

    async def _post(self, request: Request) -> Response:
        return await self._handler.handle(request, partial(self._accept, request))

    async def _accept(self, request: Request, received: ReceivedUpload) -> Response:
        owner = key_owner(request)
        wish = validate_idempotency_key(request.headers.get("idempotency-key"))
        key = None if wish is None else json.dumps([owner, wish])
        address = "" if owner else client_identity(request)

        def accept() -> QueuedJob:
            limits = self._handler.limits
            accept = request.headers.get("accept", "")[:1000]
            scan_request = SegmentationRequest.from_upload(received.upload, accept, self._handler.models)
            sent, digest = received.upload, None
            if key is not None:
                digest = request_digest(sent.files, sent.channels, scan_request.options)
            payload = JobPayload.from_upload(
                sent,
                accept=accept,
                model=scan_request.model.identity.name,
                address=address or None,
                digest=digest,
            )
            return self._store.accept(
                payload,
                received.folder,
                owner=owner,
                key=key,
                max_waiting=limits.queued,
                max_waiting_of_owner=self._max_waiting(address) if owner or address else None,
                lane=Lane("address", (address,)) if address else None,
            )

        job = await anyio.to_thread.run_sync(accept)
        if self._worker is not None:
            self._worker.wake()
        return await self._job_response(job, 202, path_prefix(request.scope))

    def _max_waiting(self, address: str) -> int:
        """Maximum number of waiting jobs of one client; an address has at most ADDRESS_QUEUE_SHARE of all."""
        limits = self._handler.limits
        most = limits.queued_per_client
        return min(most, math.ceil(limits.queued * ADDRESS_QUEUE_SHARE)) if address else most

    async def _get(self, request: Request) -> Response:
        return await self._job_response(await self._job(request), 200)

    async def _delete(self, request: Request) -> Response:
        """Stop a job that has not ended; delete one that has, unless the request has `only=stop`."""
        job = await self._job(request)
        only_stop = request.query_params.get("only") == "stop"
        if job.ended:
            if not only_stop:
                await anyio.to_thread.run_sync(self._store.delete, job)
            return await self._job_response(job, 200)
        stopped = await anyio.to_thread.run_sync(self._store.queue.stop, job.id) or job
        if stopped.state == "cancelled":
            await anyio.to_thread.run_sync(self._ended, stopped, "cancelled")
        elif self._worker is not None:
            self._worker.stop(job.id)
        return await self._job_response(stopped, 202 if stopped.state == "running" else 200, path_prefix(request.scope))

    async def _result(self, request: Request) -> Response:
        job = await self._job(request)
        if job.state == "failed":
            raise ApiError(job.result.get("status", 500), job.result["error"])
        if job.state == "cancelled":
            raise ApiError(410, "The job was cancelled.")
        if job.state != "done":
            raise ApiError(
                409, f"The job is {job.state}; try again later.", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        asked = request.query_params.get("output_format", request.query_params.get("answer"))  # its former name
        kept = JobPayload.from_job(job).output_format
        if asked is not None and present_name(asked) != kept:
            if kept != VIEWER_BUNDLE:
                raise ApiError(
                    400,
                    f"Only the result of a job that was sent with `output_format` = {VIEWER_BUNDLE} has other output "
                    "formats.",
                )
            client = client_identity(request)
            with self._handler.admission.admit(client):
                again = await anyio.to_thread.run_sync(self._convert_result, job, asked, client, limiter=self._writers)
            return Response(again.body, media_type=again.media_type, headers=again.headers)
        details = job.result
        headers = limit_header_sizes(details["headers"])  # version 0.1 stored them without a limit
        return FileResponse(self._store.results / job.id, media_type=details["media_type"], headers=headers)

    def _convert_result(self, job: QueuedJob, asked: str, client: str) -> EncodedResult:
        with self._limiter.slot(client):
            upload, folder = self._store.copy_upload(job)
            try:
                upload = replace(upload, fields={**upload.fields, "output_format": asked})
                scan_request = SegmentationRequest.from_upload(upload, "", self._handler.models)
                return convert_result(scan_request, self._store.results / job.id, folder)
            finally:
                remove(folder)

    async def _events(self, request: Request) -> Response:
        job, client = await self._job(request), client_identity(request)
        if self._watching[client] >= MAX_WATCHED_JOBS:
            raise ApiError(
                429,
                f"You are watching {MAX_WATCHED_JOBS} jobs already; poll /jobs/ID instead.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        return StreamingResponse(self._watched(job, client), media_type="text/event-stream")

    async def _watched(self, job: QueuedJob, client: str) -> AsyncIterator[str]:
        self._watching[client] += 1
        try:
            async for event in self._changes(job):
                yield event
        finally:
            self._watching[client] -= 1
            if not self._watching[client]:
                del self._watching[client]

    async def _changes(self, job: QueuedJob) -> AsyncIterator[str]:
        told, since = "", time.monotonic()
        while True:
            document = (await anyio.to_thread.run_sync(self._job_document, job)).model_dump_json()
            if document != told:
                yield f"event: job\ndata: {document}\n\n"
                told, since = document, time.monotonic()
            elif time.monotonic() - since > KEEPALIVE_SECONDS:
                yield ": still here\n\n"
                since = time.monotonic()
            if job.ended:
                return
            await asyncio.sleep(EVENT_POLL_INTERVAL)
            found = await anyio.to_thread.run_sync(self._store.queue.get, job.id)
            if found is None:
                return
            job = found

    async def _job(self, request: Request) -> QueuedJob:
        name = request.path_params["id"]
        job = await anyio.to_thread.run_sync(self._store.queue.get, name)
        # The response for a job of another owner does not reveal that it exists.
        if job is None or job.queue != JOB_QUEUE or job.owner != key_owner(request):
            hours = self._handler.limits.keep_seconds / 3600
            raise ApiError(404, f"There is no such job; jobs are kept for {hours:g} hours after their end.")
        return job

    async def _job_response(self, job: QueuedJob, status: int, prefix: str = "") -> Response:
        headers = {"Location": f"{prefix}/jobs/{job.id}"} if status == 202 else {}
        if not job.ended:
            headers["Retry-After"] = "1"
        answer = await anyio.to_thread.run_sync(self._job_document, job)
        return JSONResponse(answer.model_dump(), status, headers=headers)

    def _job_document(self, job: QueuedJob) -> JobResponse:
        progress = job.progress
        if job.state == "running" and self._worker is not None:
            progress = self._worker.progress(job.id) or progress
        windows = job.result.get("windows")
        return JobResponse(
            id=job.id,
            state=job.state,
            model=JobPayload.from_job(job).model,
            created=job.created,
            ahead=self._store.queue.count_ahead(job) if job.state == "waiting" else 0,
            attempts=job.attempts,
            windows_done=progress.get("done", 0) if windows is None else windows,
            windows_total=progress.get("total", 0) if windows is None else windows,
            seconds_left=progress.get("seconds_left") if job.state == "running" else None,
            millilitres=_result_value(job, "millilitres", MILLILITRES_HEADER),
            remarks=_remarks(job),
            error=job.result.get("error"),
            status=job.result.get("status"),
        )

    def _with_error_handling(self, respond: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                response: Response = await respond(request)
            except Exception as error:  # noqa: BLE001 - every error becomes a response, as in UploadHandler.handle
                response = api_error_response(to_api_error(error))
            return response

        return answer


def _result_value(job: QueuedJob, name: str, header: str) -> Any:
    """A value of the result of a job; results of version 0.1 have it only in their headers."""
    if job.state != "done":
        return None
    return job.result[name] if name in job.result else json.loads(job.result["headers"][header])


def _remarks(job: QueuedJob) -> list[ScanWarningReport] | None:
    pairs = _result_value(job, "remarks", REMARKS_HEADER)
    return None if pairs is None else [ScanWarningReport(code=code, text=text) for code, text in pairs]


class _ProgressReporter:
    """Stores the progress of a scan and an estimate of the remaining time."""

    def __init__(self, task: RunningJob) -> None:
        self._task = task
        self._first: tuple[float, int] | None = None

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        left = None
        if self._first is None:
            self._first = now, done
        elif done > self._first[1]:
            since, first = self._first
            left = round((now - since) / (done - first) * (total - done), 1)
        self._task.progress = {"done": done, "total": total, "seconds_left": left}
