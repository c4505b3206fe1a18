"""Reading of a request body in chunks, with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.requests import ClientDisconnect, Request

from server.http.limits import MEGABYTE, ApiError, Limits

DRAIN_BYTES = 64 * MEGABYTE
DRAIN_SECONDS = 5.0


class RequestBody:
    """A request body that is read in chunks.

    Attributes:
        has_more: True if more data may follow.
        complete: True if the end of the body was read.
        received: Number of bytes read so far.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        self.has_more = True
        self.complete = False
        self.received = 0
        self._receive = request.receive
        self._idle_seconds = limits.idle_seconds
        # Such a client sends no body before it gets the status 100, which the first call of `receive` causes.
        self._waits_for_us = "100-continue" in request.headers.get("expect", "").lower()

    async def next_chunk(self) -> bytes:
        """Return the next bytes, b"" at the end.

        Raises:
            ApiError: 408, nothing arrived within the time limit.
            ClientDisconnect: The client disconnected.
        """
        self._waits_for_us = False
        try:
            message = await asyncio.wait_for(self._receive(), self._idle_seconds)
        except TimeoutError:
            self.has_more = False
            raise ApiError(408, f"The upload stalled for {self._idle_seconds:g} seconds; send it again.") from None
        if message["type"] == "http.disconnect":
            self.has_more = False
            raise ClientDisconnect
        self.has_more = message.get("more_body", False)
        self.complete = not self.has_more
        chunk: bytes = message.get("body", b"")
        self.received += len(chunk)
        return chunk

    async def drain(self) -> None:
        """Read and discard the rest of the body for a while, after a request was rejected.

        Most clients read the response only after they have sent everything; if the connection is closed before, they
        report a network error in place of the response's message.
        """
        if self._waits_for_us:
            return
        until = time.monotonic() + DRAIN_SECONDS
        enough = self.received + DRAIN_BYTES
        with contextlib.suppress(ApiError, ClientDisconnect, TimeoutError):
            while self.has_more and self.received < enough and (left := until - time.monotonic()) > 0:
                await asyncio.wait_for(self.next_chunk(), left)
