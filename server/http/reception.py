"""Where an upload comes in: counted, written into a folder of its own, handed on, and its folder deleted."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from semiseg.errors import Cancelled
from semiseg.inference.sliding_window import Timing
from semiseg.system.memory import trim
from server.http.body import Body
from server.http.limits import RETRY_SECONDS, Admission, Limits, Refusal
from server.http.metrics import Metrics
from server.http.models import Models
from server.http.replies import error_response, refusal_of, refused
from server.http.uploads import Upload, receive_upload

CLIENT_GONE = 499  # what proxies log for it; nobody is there to read the answer


@dataclass(frozen=True)
class Received:
    """An upload that is on the disk.

    Attributes:
        upload: its files and fields.
        folder: where they are; deleted at the end of the request, unless somebody moved it.
        timing: of this scan, the seconds of the upload being in it.
    """

    upload: Upload
    folder: Path
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class Reception:
    """Takes uploads within limits."""

    models: Models
    limits: Limits
    admission: Admission
    metrics: Metrics
    scratch: Path

    async def take(self, request: Request, then: Callable[[Received], Awaitable[Response]]) -> Response:
        """Receive one upload and answer it by ``then``; every error ends here, as a status and one sentence."""
        body = Body(request, self.limits)
        try:
            with self.admission.one(client_of(request)), anyio.fail_after(self.limits.request_seconds):
                response = await self._taken(request, body, then)
        except TimeoutError:
            self.metrics.refused(504)
            seconds = self.limits.request_seconds
            response = error_response(504, f"It took longer than the {seconds:g} seconds that a request may take.")
        except (ClientDisconnect, Cancelled):
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - the edge: even what nobody foresaw shows nothing of its inside
            refusal = refusal_of(error)
            self.metrics.refused(refusal.status)
            response = refused(refusal)
        await body.drain()
        if not body.complete:
            # What is still to come cannot be told from a next request.
            response.headers["Connection"] = "close"
        return response

    async def _taken(self, request: Request, body: Body, then: Callable[[Received], Awaitable[Response]]) -> Response:
        if not self.models.ready:
            raise Refusal(
                503, "The model is still warming up; try again shortly.", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        folder = Path(tempfile.mkdtemp(prefix="semiseg-", dir=self.scratch))
        try:
            clock = time.perf_counter()
            received = Received(await receive_upload(request, body, folder, self.limits), folder)
            received.timing.add("upload", clock)
            return await then(received)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_leave, folder)


def _leave(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    trim()


def client_of(request: Request) -> str:
    """Who asks: the owner of the key that came with the request, or an address."""
    return owner_of(request) or (request.client.host if request.client else "")


def owner_of(request: Request) -> str:
    """The owner of the key that came with the request; "" where the server has no keys."""
    owner: str = request.scope.get("semiseg.owner", "")
    return owner
