"""The labelling application: MONAI Label's REST interface over a dataset folder.

Paths, methods and documents are those of MONAI Label 0.8.5, as its extension for 3D Slicer and its Python client expect
them (https://github.com/Project-MONAI/MONAILabel). Its plugin for OHIF is not supported, because it needs DICOM series,
which a dataset folder does not have.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from semiseg.errors import InputError
from server.http.access_options import AccessOptions
from server.http.body import RequestBody
from server.http.limits import ApiError
from server.labelling.context import LabellingContext, display_path
from server.labelling.datastore_endpoints import DatastoreEndpoints
from server.labelling.forms import receive_form, receive_json
from server.labelling.inference import InferenceEndpoint
from server.labelling.middleware import LabellingMiddleware, authenticate, error_response
from server.labelling.sessions import session_document
from server.labelling.tasks import TrainingService
from server.labelling.training_endpoints import TrainingEndpoints

_PAGE = Path(__file__).with_name("page")
_LINES = 300


def make_labelling_app(
    context: LabellingContext, access: AccessOptions, training: TrainingService | None = None
) -> Starlette:
    """Make the ASGI application.

    Args:
        context: Objects that the endpoints share.
        access: Allowed host names and origins, and trusted proxies.
        training: Service that trains the next model; None for a server that does not train.

    Raises:
        InputError: A host name, an origin or a proxy in ``access`` is invalid.
    """
    datastore = DatastoreEndpoints(context)
    inference = InferenceEndpoint(context)
    general = _GeneralEndpoints(context, datastore, training)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with inference.lifespan():
            yield

    async def http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        known = "This URL does not allow this method." if status == 405 else "There is nothing at this URL."
        del request
        return error_response(ApiError(status, known, headers=headers))

    routes = [
        *general.routes(),
        *datastore.routes(),
        Route("/infer/{model}", context.upload(inference.respond), methods=["POST"]),
        *TrainingEndpoints(context, training).routes(),
        # Its own files, and those that it shares with the page of `semiseg serve`: the viewer among them.
        Mount("/page", StaticFiles(directory=_PAGE, packages=[("server.http", "page")])),
    ]
    keys, guard, proxies = context.keys, access.browser_guard(keys=context.keys.required), access.trusted_proxies()
    middleware = [Middleware(LabellingMiddleware, keys=keys, guard=guard, proxies=proxies)]
    if access.origins:  # outermost, since a browser's preflight request has no key
        cross_origin = Middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
            expose_headers=["Content-Disposition", "Retry-After", "X-Semiseg-Model"],
        )
        middleware.insert(0, cross_origin)
    handlers: dict[Any, Any] = {404: http_error, 405: http_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


class _GeneralEndpoints:
    """The endpoints that concern neither labels nor inference nor training."""

    def __init__(
        self, context: LabellingContext, datastore: DatastoreEndpoints, training: TrainingService | None
    ) -> None:
        self._context, self._datastore, self._training = context, datastore, training
        self._page_text = (_PAGE / "label.html").read_text(encoding="utf-8")

    def routes(self) -> list[Route]:
        simple, upload = self._context.endpoint, self._context.upload
        return [
            Route("/", simple(self._page), methods=["GET"]),
            Route("/livez", simple(self._alive), methods=["GET"]),
            Route("/readyz", simple(self._alive), methods=["GET"]),
            Route("/info/", simple(self._info), methods=["GET"]),
            Route("/labels/", simple(self._labels), methods=["GET"]),
            Route("/activelearning/{strategy}", upload(self._next_image), methods=["POST"]),
            Route("/session/", upload(self._make_session), methods=["PUT"]),
            Route("/session/{name}", simple(self._session), methods=["GET"]),
            Route("/session/{name}", simple(self._end_session), methods=["DELETE"]),
            Route("/logs/", simple(self._logs), methods=["GET"]),
            Route("/auth/", simple(self._authentication), methods=["GET"]),
            Route("/auth/token", upload(self._token), methods=["POST"]),
            Route("/auth/token/valid", simple(self._valid), methods=["GET"]),
        ]

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(self._page_text)

    async def _labels(self, _: Request) -> Response:
        return JSONResponse(self._context.datastore.names.describe())

    async def _alive(self, _: Request) -> Response:
        return JSONResponse({})

    async def _info(self, _: Request) -> Response:
        return JSONResponse(await anyio.to_thread.run_sync(self._described))

    def _described(self) -> dict[str, Any]:
        context, training = self._context, self._training
        model = context.models.current()
        return {
            "name": f"semiseg: {context.datastore.dataset.name}",
            "description": "Labels of a dataset folder, stored by semiseg. RESEARCH USE ONLY.",
            "version": metadata.version("semiseg"),
            "labels": list(context.datastore.names.values),
            "models": {} if model is None else {model.name: model.describe()},
            "trainers": {} if training is None else {training.name: training.describe()},
            "strategies": {one.name: {"description": one.description} for one in context.strategies.values()},
            "scoring": {},
            "train_stats": {} if training is None else {training.name: training.statistics()},
            "datastore": self._datastore.statistics(),
        }

    async def _next_image(self, request: Request, body: RequestBody, _: Path) -> Response:
        context = self._context
        strategy = context.strategies.get(request.path_params["strategy"])
        if strategy is None:
            raise ApiError(404, f"The strategies are {', '.join(context.strategies)}.")
        await receive_json(body)

        def offer() -> dict[str, Any]:
            image = context.reservations.next(context.datastore.waiting(), strategy)
            if image is None:
                return {}
            file = context.datastore.dataset.cases[image].image
            return {
                "id": image,
                "name": file.name,
                "path": display_path(request, file),
                "checksum": f"SHA256:{context.datastore.checksum(file)}",
                "ts": int(file.stat().st_mtime),
            }

        return JSONResponse(await anyio.to_thread.run_sync(offer))

    async def _make_session(self, request: Request, body: RequestBody, folder: Path) -> Response:
        asked = request.query_params.get("expiry", "0")
        if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
            raise ApiError(400, "`expiry` must be a number of seconds.")
        form = await receive_form(request, body, folder, self._context.limits)
        files = form.files.get("files", ())
        session = await anyio.to_thread.run_sync(self._context.sessions.create, files, int(asked))
        return JSONResponse({"session_id": session.name, "session_info": session_document(session)})

    async def _session(self, request: Request) -> Response:
        sessions, name = self._context.sessions, request.path_params["name"]
        session = sessions.get(name)
        if request.query_params.get("image", "").lower() in ("true", "1", "yes"):
            files = sorted(sessions.image_of(name).iterdir())
            if len(files) > 1:
                raise ApiError(400, "The image of this session has several files, which cannot be sent back.")
            return FileResponse(files[0], media_type="application/octet-stream", filename=session.image)
        return JSONResponse(session_document(session))

    async def _end_session(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(session_document(await anyio.to_thread.run_sync(self._context.sessions.remove, name)))

    async def _logs(self, request: Request) -> Response:
        asked = request.query_params.get("lines", str(_LINES))
        if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
            raise ApiError(400, "`lines` must be a number of lines; 0 returns all that are kept.")
        lines = self._context.log.last(int(asked))
        return PlainTextResponse("".join(f"{line}\n" for line in lines))

    async def _authentication(self, _: Request) -> Response:
        return JSONResponse({"enabled": self._context.keys.required, "client_id": "semiseg", "realm": ""})

    async def _token(self, request: Request, body: RequestBody, folder: Path) -> Response:
        """Return the API key, sent as the password of its owner, as the access token."""
        fields = (await receive_form(request, body, folder, self._context.limits)).fields
        if not self._context.keys.required:
            return JSONResponse({"access_token": None, "token_type": None})
        key, owner = fields.get("password", ""), None
        try:
            owner = self._context.keys.find_owner(key)
        except InputError:
            raise ApiError(503, "The server's API keys cannot be read; its operator has to check them.") from None
        if owner is None or owner != fields.get("username"):
            raise ApiError(401, "Log in with the name of the owner of an API key, and with the key as the password.")
        return JSONResponse({"access_token": key, "token_type": "bearer"})

    async def _valid(self, request: Request) -> Response:
        owner = authenticate(self._context.keys, request.scope) if self._context.keys.required else "everybody"
        return JSONResponse({"username": owner, "email": None, "name": owner, "roles": []})
