"""What the endpoints of the labelling server share, and how each request is received, bounded and answered."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from semiseg.errors import Cancelled, InputError
from server.http.body import RequestBody
from server.http.errors import to_api_error
from server.http.limits import AdmissionControl, ApiError, Limits
from server.http.upload_handler import CLIENT_GONE, client_identity, key_owner
from server.jobs.fair_limiter import FairLimiter
from server.keys import ApiKeys
from server.labelling.datastore import Datastore
from server.labelling.middleware import RecentLog, error_response
from server.labelling.models import ModelSlot
from server.labelling.selection import ImageReservations
from server.labelling.sessions import Sessions

Endpoint = Callable[[Request], Awaitable[Response]]
NAME_CHARACTERS = 80


@dataclass(frozen=True)
class LabellingContext:
    """What a labelling server has.

    Attributes:
        datastore: The images and their labels.
        models: The model in use.
        sessions: Images of clients that are not in the dataset.
        reservations: Images that were offered to annotators lately.
        keys: API keys.
        limits: What is accepted.
        admission: Count of the requests that are being received or worked on.
        limiter: Turns of the network.
        scratch: Folder for uploads.
        log: The last lines of the log.
    """

    datastore: Datastore
    models: ModelSlot
    sessions: Sessions
    keys: ApiKeys
    limits: Limits
    admission: AdmissionControl
    limiter: FairLimiter
    scratch: Path
    reservations: ImageReservations = field(default_factory=ImageReservations)
    log: RecentLog = field(default_factory=RecentLog)

    def endpoint(self, work: Callable[[Request], Awaitable[Response]]) -> Endpoint:
        """An endpoint without a body that is worth counting; every error becomes a status and a sentence."""

        async def respond(request: Request) -> Response:
            return await self._answered(request, lambda: work(request), None)

        return respond

    def upload(self, work: Callable[[Request, RequestBody, Path], Awaitable[Response]]) -> Endpoint:
        """An endpoint that receives a body, within the limits, into a folder that is deleted afterwards."""

        async def respond(request: Request) -> Response:
            body = RequestBody(request, self.limits)

            async def take() -> Response:
                with self.admission.admit(client_identity(request)), anyio.fail_after(self.limits.request_seconds):
                    folder = Path(tempfile.mkdtemp(prefix="request-", dir=self.scratch))
                    try:
                        return await work(request, body, folder)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

            return await self._answered(request, take, body)

        return respond

    async def _answered(
        self, request: Request, work: Callable[[], Awaitable[Response]], body: RequestBody | None
    ) -> Response:
        try:
            response = await work()
        except TimeoutError:
            seconds = self.limits.request_seconds
            words = f"It took longer than the {seconds:g} seconds that a request may take."
            response = error_response(ApiError(504, words))
        except (ClientDisconnect, Cancelled):
            return Response(status_code=CLIENT_GONE)
        except InputError as error:
            response = error_response(ApiError(422, self.without_paths(str(error))))
        except Exception as error:  # noqa: BLE001 - an unexpected error shows nothing of the server's inside
            response = error_response(to_api_error(error))
        if body is not None:
            await body.drain()
            if not body.complete:
                # The rest of the body cannot be told from a next request.
                response.headers["Connection"] = "close"
        return response

    def without_paths(self, sentence: str) -> str:
        """A sentence without the folders of this machine."""
        for folder in (self.datastore.dataset.folder, self.datastore.state, self.scratch):
            for shown in dict.fromkeys((str(folder.resolve()), str(folder))):
                sentence = sentence.replace(f"{shown}/", "").replace(f"{shown}\\", "").replace(shown, "the dataset")
        return sentence


def requester_name(request: Request, params: dict[str, Any]) -> str:
    """The name under which a change is recorded: the key's owner, or else what the client calls itself."""
    if owner := key_owner(request):
        return owner
    return printable(params.get("client_id")) or "unnamed"


def printable(said: object) -> str:
    """A name that a client gave, in printable characters and not too long; empty for anything but text."""
    return "".join(c for c in said if c.isprintable())[:NAME_CHARACTERS] if isinstance(said, str) else ""


def display_path(request: Request, path: Path) -> str:
    """A path as a client is told it: whole for a program of this machine, which may open it, else the file's name."""
    client = request.client.host if request.client else ""
    try:
        direct = bool(request.scope.get("semiseg.direct")) and "x-forwarded-for" not in request.headers
        local = direct and ip_address(client).is_loopback
    except ValueError:
        local = False
    return str(path.resolve()) if local else path.name


def query(request: Request, name: str, *others: str) -> str:
    """A parameter of the query that has to be there, under one of its names.

    Raises:
        ApiError: 400, it is missing.
    """
    for one in (name, *others):
        if value := request.query_params.get(one):
            return value
    raise ApiError(400, f"Say which one is meant in the query: ?{name}=...")
