"""The objects that the endpoints of the labelling server share, and the limits and errors of their requests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
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
from server.labelling.selection import ImageReservations, Strategy, make_strategies
from server.labelling.sessions import Sessions

Endpoint = Callable[[Request], Awaitable[Response]]
NAME_CHARACTERS = 80


@dataclass(frozen=True)
class LabellingContext:
    """The objects that all endpoints of a labelling server share.

    Attributes:
        datastore: Images and their labels.
        models: Model in use.
        sessions: Images of clients that are not in the dataset.
        keys: API keys.
        limits: Limits of requests.
        admission: Concurrency limit of requests.
        limiter: Limiter for the concurrent use of the network.
        scratch: Folder for uploads.
        strategies: Orders in which images are offered, by name.
        reservations: Images that were recently offered to annotators.
        log: Last lines of the log.
    """

    datastore: Datastore
    models: ModelSlot
    sessions: Sessions
    keys: ApiKeys
    limits: Limits
    admission: AdmissionControl
    limiter: FairLimiter
    scratch: Path
    strategies: Mapping[str, Strategy] = field(default_factory=make_strategies)
    reservations: ImageReservations = field(default_factory=ImageReservations)
    log: RecentLog = field(default_factory=RecentLog)

    def endpoint(self, work: Callable[[Request], Awaitable[Response]]) -> Endpoint:
        """Wrap the handler of requests without a body to receive; errors become a status and a message."""

        async def respond(request: Request) -> Response:
            return await self._answered(request, lambda: work(request), None)

        return respond

    def upload(self, work: Callable[[Request, RequestBody, Path], Awaitable[Response]]) -> Endpoint:
        """Wrap a handler that receives a body, within the limits, into a folder that is deleted afterwards."""

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
            words = f"The request took longer than the time limit of {seconds:g} seconds."
            response = error_response(ApiError(504, words))
        except (ClientDisconnect, Cancelled):
            return Response(status_code=CLIENT_GONE)
        except InputError as error:
            response = error_response(ApiError(422, self.without_paths(str(error))))
        except Exception as error:  # noqa: BLE001 - unexpected errors must not reveal internals
            response = error_response(to_api_error(error))
        if body is not None:
            await body.drain()
            if not body.complete:
                # The rest of the body could not be distinguished from the next request.
                response.headers["Connection"] = "close"
        return response

    def without_paths(self, sentence: str) -> str:
        """Remove the folders of this machine from a message."""
        for folder in (self.datastore.dataset.folder, self.datastore.state, self.scratch):
            for shown in dict.fromkeys((str(folder.resolve()), str(folder))):
                sentence = sentence.replace(f"{shown}/", "").replace(f"{shown}\\", "").replace(shown, "the dataset")
        return sentence


def requester_name(request: Request, params: dict[str, Any]) -> str:
    """The name under which a change is recorded: the key's owner, or else the name that the client sent."""
    if owner := key_owner(request):
        return owner
    return printable(params.get("client_id")) or "unnamed"


def printable(said: object) -> str:
    """The printable characters of a client's name, at most NAME_CHARACTERS; empty if it is not text."""
    return "".join(c for c in said if c.isprintable())[:NAME_CHARACTERS] if isinstance(said, str) else ""


def display_path(request: Request, path: Path) -> str:
    """A path for a client: absolute for a program on this machine, which may open it; else the name of the file."""
    client = request.client.host if request.client else ""
    try:
        direct = bool(request.scope.get("semiseg.direct")) and "x-forwarded-for" not in request.headers
        local = direct and ip_address(client).is_loopback
    except ValueError:
        local = False
    return str(path.resolve()) if local else path.name


def query(request: Request, name: str, *others: str) -> str:
    """Return a required parameter of the query, which may have one of several names.

    Raises:
        ApiError: 400, the parameter is missing.
    """
    for one in (name, *others):
        if value := request.query_params.get(one):
            return value
    raise ApiError(400, f"The query parameter `{name}` is missing: ?{name}=...")
