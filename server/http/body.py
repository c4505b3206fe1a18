"""A request's body as it comes in, read with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.requests import ClientDisconnect, Request

from server.http.limits import MEGABYTE, ApiError, Limits

DRAIN_BYTES = 64 * MEGABYTE
DRAIN_SECONDS = 5.0


class RequestBody:
    """A request's body, as it comes in.

    Attributes:
        has_more: whether reading on could bring more.
        complete: whether its end was seen.
        received: bytes so far.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        self.has_more = True
        self.complete = False
        self.received = 0
        self._receive = request.receive
        self._idle_seconds = limits.idle_seconds
        # Such a client sends nothing before it is asked to go on, which the first call of `receive` does.
        self._waits_for_us = "100-continue" in request.headers.get("expect", "").lower()

    async def next_chunk(self) -> bytes:
        """The bytes that came next, b"" at the end.

        Raises:
            ApiError: 408, nothing came for too long.
            ClientDisconnect: the client went away.
        """
        self._waits_for_us = False
        try:
            message = await asyncio.wait_for(self._receive(), self._idle_seconds)
        except TimeoutError:
            self.has_more = False
            raise ApiError(408, f"The upload stood still for {self._idle_seconds:g} seconds; send it again.") from None
        if message["type"] == "http.disconnect":
            self.has_more = False
            raise ClientDisconnect
        self.has_more = message.get("more_body", False)
        self.complete = not self.has_more
        chunk: bytes = message.get("body", b"")
        self.received += len(chunk)
        return chunk

    async def drain(self) -> None:
        """Read on for a while after a refusal and throw away what comes.

        Most clients read the answer only when they have sent everything; a connection closed under them shows them an
        error of the network instead of our sentence.
        """
        if self._waits_for_us:
            return
        until = time.monotonic() + DRAIN_SECONDS
        enough = self.received + DRAIN_BYTES
        with contextlib.suppress(ApiError, ClientDisconnect, TimeoutError):
            while self.has_more and self.received < enough and (left := until - time.monotonic()) > 0:
                await asyncio.wait_for(self.next_chunk(), left)
