"""POST /segment: segments one scan and returns the result; the server keeps neither."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from semiseg.errors import Cancelled
from server.http.output_formats import wants_report
from server.http.results import EncodedResult, segment_scan
from server.http.segmentation_request import SegmentationRequest
from server.http.upload_handler import ReceivedUpload, UploadHandler, client_identity
from server.http.waiting_client import run_while_connected
from server.jobs.fair_limiter import FairLimiter

POLL_INTERVAL = 0.2  # seconds between two checks whether the client is still connected


class SegmentEndpoint:
    """Segments the scan of each request while its client waits."""

    def __init__(self, handler: UploadHandler, limiter: FairLimiter) -> None:
        """Create the endpoint; ``limiter`` is shared with the jobs."""
        self._handler = handler
        self._limiter = limiter
        # One thread for each admitted request: a waiting request waits in its thread for a slot of the limiter.
        most = handler.limits.parallel + handler.limits.waiting
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="segment")

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """When the server stops, wait for the running windows; the work on their scans is then cancelled."""
        yield
        await anyio.to_thread.run_sync(partial(self._pool.shutdown, wait=True, cancel_futures=True))

    async def respond(self, request: Request) -> Response:
        """Respond to one request."""

        async def segment(received: ReceivedUpload) -> Response:
            accept = request.headers.get("accept", "")
            client = client_identity(request)
            answer = await run_while_connected(
                self._pool, request, lambda stopped: self._segment(received, accept, client, stopped)
            )
            return Response(answer.body, media_type=answer.media_type, headers=answer.headers)

        return await self._handler.handle(request, segment)

    def _segment(
        self, received: ReceivedUpload, accept: str, client: str, stopped: Callable[[], bool]
    ) -> EncodedResult:
        scan_request = SegmentationRequest.from_upload(
            received.upload, accept, self._handler.models, with_report=wants_report(accept)
        )
        if not self._limiter.acquire_unless_stopped(stopped, POLL_INTERVAL, client):
            raise Cancelled("The client disconnected before the work began.")
        try:
            answer = segment_scan(scan_request, received.folder, received.timing, stopped)
        finally:
            self._limiter.release(client)
        self._handler.metrics.count_scan(answer.report.model.name, received.timing)
        return answer
