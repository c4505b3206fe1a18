"""/jobs: a scan is accepted, segmented when its turn comes, and its result kept until it is fetched or too old."""

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
from semiseg.inference.sliding_window import Timing
from semiseg.outputs.report import RemarkReport
from semiseg.system.memory import trim
from server.forwarded import prefix_of
from server.http.answer_headers import MILLILITRES, REMARKS, bounded
from server.http.answers import Answer, answer_again, answer_order
from server.http.forms import forms_named
from server.http.idempotency import checked_key, request_digest
from server.http.limits import RETRY_SECONDS, Refusal
from server.http.order import Order
from server.http.reception import Received, Reception, client_of, owner_of
from server.http.replies import refusal_of, refused
from server.http.schemas import JobAnswer
from server.http.state import JOBS, JobFiles
from server.jobs.fair_limiter import FairLimiter
from server.jobs.files import remove
from server.jobs.lanes import Lane
from server.jobs.queue import Job, State
from server.jobs.worker import JobFailed, Postponed, Task, Worker

TIDYING = 60.0  # seconds between two looks for results that are too old
EVENTS = 0.5  # seconds between two looks at a job that somebody watches
WATCHED = 64  # jobs that one client may watch at once
SILENCE = 15.0  # seconds after which a stream says that it is alive, for proxies that cut silent ones
SHARE = 0.9  # of the waiting jobs that an address may have where there are no keys
LATER = 30.0  # seconds until a job is tried again that met a full disk


class Jobs:
    """The routes below /jobs, and the worker behind them."""

    def __init__(self, reception: Reception, files: JobFiles, turns: FairLimiter) -> None:
        """Begin working on what is in the queue as soon as :meth:`lifespan` is entered."""
        self._reception = reception
        self._files = files
        self._turns = turns
        self._worker: Worker | None = None
        self._watching: Counter[str] = Counter()
        self._writers = anyio.CapacityLimiter(reception.limits.parallel)

    def routes(self) -> list[Route]:
        """What the application mounts."""
        return [
            Route("/jobs", self._caught(self._post), methods=["POST"], name="post_job"),
            Route("/jobs/{id}", self._caught(self._get), methods=["GET"], name="get_job"),
            Route("/jobs/{id}", self._caught(self._delete), methods=["DELETE"], name="delete_job"),
            Route("/jobs/{id}/result", self._caught(self._result), methods=["GET"], name="get_result"),
            Route("/jobs/{id}/events", self._caught(self._events), methods=["GET"], name="watch_job"),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Work on jobs meanwhile; at the end, what is running goes back into the queue."""
        self._worker = Worker(
            self._files.queue,
            JOBS,
            self._work,
            threads=self._reception.limits.parallel,
            turns=self._turns,
            ready=lambda: self._reception.models.ready,
            ended=self._ended,
            fair=True,
        )
        tidying = asyncio.ensure_future(self._tidy())
        try:
            yield
        finally:
            tidying.cancel()
            await anyio.to_thread.run_sync(self._worker.close)
            self._files.queue.close()

    def _work(self, task: Task) -> dict[str, Any]:
        """One job, in a thread of the worker."""
        timing = Timing()
        folder, until = None, time.monotonic() + self._reception.limits.request_seconds

        def stopped() -> bool:
            return task.cancelled() or time.monotonic() > until

        try:
            upload, folder = self._files.upload_of(task.job)
            order = Order.of(upload, task.job.payload["accept"], self._reception.models)
            answer = answer_order(order, folder, timing, stopped, _Pace(task).told)
            if stopped():
                raise Cancelled("The job was stopped.")
            result = self._files.keep(task.job, answer)
        except Cancelled:
            if task.cancelled():
                raise
            seconds = self._reception.limits.request_seconds
            raise JobFailed(f"It took longer than the {seconds:g} seconds that a scan may take.", status=504) from None
        except Exception as error:  # noqa: BLE001 - the edge of a job, as Reception.take is of a request
            refusal = refusal_of(error)
            if refusal.status == 507:
                raise Postponed(str(refusal), after=LATER) from None
            raise JobFailed(str(refusal), status=refusal.status) from None
        finally:
            if folder is not None:
                remove(folder)
            trim()
        self._reception.metrics.scan(answer.report.model.name, timing)
        return result

    def _ended(self, job: Job, state: State) -> None:
        self._reception.metrics.job_ended(state)
        self._files.ended(replace(job, state=state))

    async def _tidy(self) -> None:
        keep = self._reception.limits.keep_seconds
        while True:
            with contextlib.suppress(Exception):
                await anyio.to_thread.run_sync(self._files.forget_old, keep)
            await asyncio.sleep(min(TIDYING, keep))

    async def _post(self, request: Request) -> Response:
        return await self._reception.take(request, partial(self._accept, request))

    async def _accept(self, request: Request, received: Received) -> Response:
        owner = owner_of(request)
        wish = checked_key(request.headers.get("idempotency-key"))
        key = None if wish is None else json.dumps([owner, wish])
        address = "" if owner else client_of(request)

        def accept() -> Job:
            limits = self._reception.limits
            accept = request.headers.get("accept", "")[:1000]
            order = Order.of(received.upload, accept, self._reception.models)
            told = {"accept": accept, "model": order.model.identity.name}
            if address:
                told["address"] = address
            if key is not None:
                sent = received.upload
                told["digest"] = request_digest(sent.files, sent.channels, sent.fields, accept)
            return self._files.accept(
                received.upload,
                received.folder,
                told,
                owner=owner,
                key=key,
                most=limits.queued,
                most_of_owner=self._most_waiting(address) if owner or address else None,
                lane=Lane("address", (address,)) if address else None,
            )

        job = await anyio.to_thread.run_sync(accept)
        if self._worker is not None:
            self._worker.wake()
        return await self._described(job, 202, prefix_of(request.scope))

    def _most_waiting(self, address: str) -> int:
        """Number of jobs of one client that may wait; an address, one without keys, has at most nine tenths of all."""
        limits = self._reception.limits
        most = limits.queued_per_client
        return min(most, math.ceil(limits.queued * SHARE)) if address else most

    async def _get(self, request: Request) -> Response:
        return await self._described(await self._job(request), 200)

    async def _delete(self, request: Request) -> Response:
        """Stop a job that has not ended; delete one that has, unless only stopping was asked for."""
        job = await self._job(request)
        only_stop = request.query_params.get("only") == "stop"
        if job.ended:
            if not only_stop:
                await anyio.to_thread.run_sync(self._files.forget, job)
            return await self._described(job, 200)
        stopped = await anyio.to_thread.run_sync(self._files.queue.stop, job.id) or job
        if stopped.state == "cancelled":
            await anyio.to_thread.run_sync(self._ended, stopped, "cancelled")
        elif self._worker is not None:
            self._worker.stop(job.id)
        return await self._described(stopped, 202 if stopped.state == "running" else 200, prefix_of(request.scope))

    async def _result(self, request: Request) -> Response:
        job = await self._job(request)
        if job.state == "failed":
            raise Refusal(job.result.get("status", 500), job.result["error"])
        if job.state == "cancelled":
            raise Refusal(410, "The job was cancelled.")
        if job.state != "done":
            raise Refusal(409, f"The job is {job.state}; ask again.", headers={"Retry-After": str(RETRY_SECONDS)})
        asked = request.query_params.get("answer")
        kept = job.payload["fields"].get("answer")
        if asked not in (None, kept):
            if kept != "case":
                raise Refusal(
                    400, "Only a job that was sent with `answer` = case is answered in other forms afterwards."
                )
            client = client_of(request)
            with self._reception.admission.one(client):
                again = await anyio.to_thread.run_sync(self._again, job, asked, client, limiter=self._writers)
            return Response(again.body, media_type=again.media_type, headers=again.headers)
        told = job.result
        headers = bounded(told["headers"])  # version 0.1 kept them as long as they were
        return FileResponse(self._files.results / job.id, media_type=told["media_type"], headers=headers)

    def _again(self, job: Job, asked: str, client: str) -> Answer:
        with self._turns.one(client):
            upload, folder = self._files.upload_of(job)
            try:
                order = replace(Order.of(upload, "", self._reception.models), forms=forms_named(asked))
                return answer_again(order, self._files.results / job.id, folder)
            finally:
                remove(folder)

    async def _events(self, request: Request) -> Response:
        job, client = await self._job(request), client_of(request)
        if self._watching[client] >= WATCHED:
            raise Refusal(
                429,
                f"You watch {WATCHED} jobs already; ask for them at /jobs/ID instead.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        return StreamingResponse(self._watched(job, client), media_type="text/event-stream")

    async def _watched(self, job: Job, client: str) -> AsyncIterator[str]:
        self._watching[client] += 1
        try:
            async for event in self._changes(job):
                yield event
        finally:
            self._watching[client] -= 1
            if not self._watching[client]:
                del self._watching[client]

    async def _changes(self, job: Job) -> AsyncIterator[str]:
        told, since = "", time.monotonic()
        while True:
            document = (await anyio.to_thread.run_sync(self._answer, job)).model_dump_json()
            if document != told:
                yield f"event: job\ndata: {document}\n\n"
                told, since = document, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                yield ": still here\n\n"
                since = time.monotonic()
            if job.ended:
                return
            await asyncio.sleep(EVENTS)
            found = await anyio.to_thread.run_sync(self._files.queue.get, job.id)
            if found is None:
                return
            job = found

    async def _job(self, request: Request) -> Job:
        name = request.path_params["id"]
        job = await anyio.to_thread.run_sync(self._files.queue.get, name)
        # Another's job is answered as one that never was: even that it exists is nobody else's business.
        if job is None or job.queue != JOBS or job.owner != owner_of(request):
            hours = self._reception.limits.keep_seconds / 3600
            raise Refusal(404, f"There is no such job; what has ended is kept for {hours:g} hours.")
        return job

    async def _described(self, job: Job, status: int, prefix: str = "") -> Response:
        headers = {"Location": f"{prefix}/jobs/{job.id}"} if status == 202 else {}
        if not job.ended:
            headers["Retry-After"] = "1"
        answer = await anyio.to_thread.run_sync(self._answer, job)
        return JSONResponse(answer.model_dump(), status, headers=headers)

    def _answer(self, job: Job) -> JobAnswer:
        progress = job.progress
        if job.state == "running" and self._worker is not None:
            progress = self._worker.progress(job.id) or progress
        windows = job.result.get("windows")
        return JobAnswer(
            id=job.id,
            state=job.state,
            model=job.payload["model"],
            created=job.created,
            ahead=self._files.queue.ahead_of(job) if job.state == "waiting" else 0,
            attempts=job.attempts,
            windows_done=progress.get("done", 0) if windows is None else windows,
            windows_total=progress.get("total", 0) if windows is None else windows,
            seconds_left=progress.get("seconds_left") if job.state == "running" else None,
            millilitres=_fact(job, "millilitres", MILLILITRES),
            remarks=_remarks(job),
            error=job.result.get("error"),
            status=job.result.get("status"),
        )

    def _caught(self, respond: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                response: Response = await respond(request)
            except Exception as error:  # noqa: BLE001 - the edge, as in Reception.take
                response = refused(refusal_of(error))
            return response

        return answer


def _fact(job: Job, name: str, header: str) -> Any:
    """What is known of the result of a job; the answers of version 0.1 have it in their headers alone."""
    if job.state != "done":
        return None
    return job.result[name] if name in job.result else json.loads(job.result["headers"][header])


def _remarks(job: Job) -> list[RemarkReport] | None:
    pairs = _fact(job, "remarks", REMARKS)
    return None if pairs is None else [RemarkReport(code=code, text=text) for code, text in pairs]


class _Pace:
    """How far a scan is, and when it will be done if it goes on so."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._first: tuple[float, int] | None = None

    def told(self, done: int, total: int) -> None:
        now = time.monotonic()
        left = None
        if self._first is None:
            self._first = now, done
        elif done > self._first[1]:
            since, first = self._first
            left = round((now - since) / (done - first) * (total - done), 1)
        self._task.progress = {"done": done, "total": total, "seconds_left": left}
