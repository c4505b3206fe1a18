"""POST /segment: one scan in, its segmentation out; nothing of it stays behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from semiseg.errors import Cancelled
from server.http.answers import Answer, answer_order
from server.http.forms import wants_report
from server.http.order import Order
from server.http.reception import Received, Reception, client_of
from server.http.waiting_client import run_while_connected
from server.jobs.fair_limiter import FairLimiter

GLANCE = 0.2  # seconds between two questions whether the client is still there


class SegmentEndpoint:
    """Answers each request while its client waits."""

    def __init__(self, reception: Reception, turns: FairLimiter) -> None:
        """Share ``turns`` with whoever else segments here."""
        self._reception = reception
        self._turns = turns
        # A thread for everybody who was let in: who waits does so for a turn, in the line of its caller.
        most = reception.limits.parallel + reception.limits.waiting
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="segment")

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """When the server stops, wait for the windows that still run; their scans are given up after them."""
        yield
        await anyio.to_thread.run_sync(partial(self._pool.shutdown, wait=True, cancel_futures=True))

    async def respond(self, request: Request) -> Response:
        """Answer one request."""

        async def segment(received: Received) -> Response:
            accept = request.headers.get("accept", "")
            client = client_of(request)
            answer = await run_while_connected(
                self._pool, request, lambda stopped: self._segment(received, accept, client, stopped)
            )
            return Response(answer.body, media_type=answer.media_type, headers=answer.headers)

        return await self._reception.take(request, segment)

    def _segment(self, received: Received, accept: str, client: str, stopped: Callable[[], bool]) -> Answer:
        order = Order.of(received.upload, accept, self._reception.models, with_report=wants_report(accept))
        if not self._turns.acquire_unless(stopped, GLANCE, client):
            raise Cancelled("The client went away before its turn came.")
        try:
            answer = answer_order(order, received.folder, received.timing, stopped)
        finally:
            self._turns.release(client)
        self._reception.metrics.scan(answer.report.model.name, received.timing)
        return answer
