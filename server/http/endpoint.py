"""POST /segment: one scan in, its segmentation out; nothing of it stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from semiseg.errors import Cancelled, EngineError
from semiseg.inference.sliding_window import Timing
from server.http.answers import Answer, answer_upload
from server.http.limits import RETRY_SECONDS, Admission, Limits, Refusal
from server.http.metrics import Metrics
from server.http.model import ServedModel
from server.http.schemas import ErrorAnswer
from server.http.uploads import Body, receive_upload

CLIENT_GONE = 499  # what proxies log for it; nobody is there to read the answer
_LOG = logging.getLogger("bentoml.semiseg")


class SegmentEndpoint:
    """Answers requests with one model: a bounded number at a time, each in a folder of its own."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self._admission = Admission(limits)
        self._metrics = Metrics()
        # Its size is what bounds the scans segmented at the same time; the others wait in its queue.
        self._pool = ThreadPoolExecutor(limits.parallel, thread_name_prefix="segment")

    @contextlib.asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """When the server stops, wait for the windows that still run; their scans are given up after them."""
        yield
        await anyio.to_thread.run_sync(partial(self._pool.shutdown, wait=True, cancel_futures=True))

    async def respond(self, request: Request) -> Response:
        """Answer one request; every error ends here, as a status and one sentence."""
        body = Body(request, self._limits)
        try:
            with self._admission.one():
                answer = await self._answer(request, body)
        except Refusal as refusal:
            response = error_response(refusal.status, str(refusal), refusal.headers)
        except (ClientDisconnect, Cancelled):
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - the edge: even what nobody foresaw shows nothing of its inside
            response = _failure(error)
        else:
            response = Response(answer.body, media_type=answer.media_type, headers=answer.headers)
        self._metrics.count(response.status_code)
        await body.drain()
        if not body.complete:
            # What is still to come cannot be told from a next request.
            response.headers["Connection"] = "close"
        return response

    async def _answer(self, request: Request, body: Body) -> Answer:
        if not self._model.ready:
            raise Refusal(
                503, "The model is still warming up; try again shortly.", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        timing = Timing()
        accept = request.headers.get("accept", "")
        folder = Path(tempfile.mkdtemp(prefix="semiseg-"))
        try:
            clock = time.perf_counter()
            upload = await receive_upload(request, body, folder, self._limits)
            timing.add("upload", clock)
            answer = await self._run(
                request, lambda stopped: answer_upload(upload, accept, self._model, folder, timing, stopped)
            )
        finally:
            await asyncio.shield(anyio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True)))
        self._metrics.observe(timing)
        return answer

    async def _run(self, request: Request, work: Callable[[Callable[[], bool]], Answer]) -> Answer:
        """Do ``work`` in a thread; give it up between two windows when the client goes away or the time is over."""
        stop = threading.Event()
        job = self._pool.submit(work, stop.is_set)
        done = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {done, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            stop.set()
            if not job.done() and not job.cancel():
                await asyncio.wait({done})
        if done.cancelled():
            raise Cancelled("The client went away before its turn came.")
        return done.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def error_response(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """A sentence as the JSON that every error is answered with."""
    return JSONResponse(ErrorAnswer(error=sentence).model_dump(), status, headers=headers)


def _failure(error: Exception) -> Response:
    """Log where it happened, answer with the place in the log; messages may quote the scan's attributes."""
    reference = secrets.token_hex(4)
    frames = "".join(traceback.format_tb(error.__traceback__))
    detail = f": {error}" if isinstance(error, EngineError) else ""
    _LOG.error("Failure %s, %s%s\n%s", reference, type(error).__name__, detail, frames)
    return error_response(500, f"The server failed on this scan; its log says where, under reference {reference}.")
