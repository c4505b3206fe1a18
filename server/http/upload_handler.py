"""Handling of uploads: admission, a folder for the files, time limit, error responses, and deletion of the folder."""

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
from semiseg.inference.timing import Timing
from semiseg.system.memory import release_free_memory
from server.http.body import RequestBody
from server.http.errors import api_error_response, error_response, to_api_error
from server.http.limits import RETRY_SECONDS, AdmissionControl, ApiError, Limits
from server.http.metrics import Metrics
from server.http.models import ServedModels
from server.http.uploads import Upload, receive_upload

CLIENT_GONE = 499  # status that proxies log for a client that disconnected


@dataclass(frozen=True)
class ReceivedUpload:
    """An upload that is completely on the disk.

    Attributes:
        upload: Files and fields.
        folder: Folder of the files; deleted at the end of the request, unless it was moved.
        timing: Timing of this scan; contains the seconds of the upload.
    """

    upload: Upload
    folder: Path
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class UploadHandler:
    """Receives uploads within the limits of the server."""

    models: ServedModels
    limits: Limits
    admission: AdmissionControl
    metrics: Metrics
    scratch: Path

    async def handle(self, request: Request, then: Callable[[ReceivedUpload], Awaitable[Response]]) -> Response:
        """Receive an upload and return the response of ``then``; errors become responses with a status and message."""
        body = RequestBody(request, self.limits)
        try:
            with self.admission.admit(client_identity(request)), anyio.fail_after(self.limits.request_seconds):
                response = await self._receive(request, body, then)
        except TimeoutError:
            self.metrics.count_refusal(504)
            seconds = self.limits.request_seconds
            response = error_response(504, f"The request took longer than the time limit of {seconds:g} seconds.")
        except (ClientDisconnect, Cancelled):
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - unexpected errors must not reveal internals either
            refusal = to_api_error(error)
            self.metrics.count_refusal(refusal.status)
            response = api_error_response(refusal)
        await body.drain()
        if not body.complete:
            # The rest of the body could not be distinguished from the next request.
            response.headers["Connection"] = "close"
        return response

    async def _receive(
        self, request: Request, body: RequestBody, then: Callable[[ReceivedUpload], Awaitable[Response]]
    ) -> Response:
        if not self.models.ready:
            raise ApiError(
                503, "The model is still warming up; try again shortly.", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        folder = Path(tempfile.mkdtemp(prefix="semiseg-", dir=self.scratch))
        try:
            clock = time.perf_counter()
            received = ReceivedUpload(await receive_upload(request, body, folder, self.limits), folder)
            received.timing.add("upload", clock)
            return await then(received)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_leave, folder)


def _leave(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    release_free_memory()


def client_identity(request: Request) -> str:
    """The client of a request: the owner of its API key, or its address."""
    return key_owner(request) or (request.client.host if request.client else "")


def key_owner(request: Request) -> str:
    """The owner of a request's API key; "" if the server has no keys."""
    owner: str = request.scope.get("semiseg.owner", "")
    return owner
