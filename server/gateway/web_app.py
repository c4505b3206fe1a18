"""The web listener: STOW-RS, declaration that a study is complete, status page, metrics and health checks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from semiseg.errors import InputError
from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies
from server.gateway.status_page import render_page
from server.gateway.stow_handler import StowError, StowHandler
from server.keys import ApiKeys, key_from_headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.gateway.overview import Overview

CompleteStudy = Callable[[str, "int | None", bool], "tuple[str, str] | None"]
PUBLIC_PATHS = ("/livez", "/readyz")
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class WebApp:
    """Request handlers of the web listener."""

    def __init__(self, stow: StowHandler, overview: Overview, complete: CompleteStudy) -> None:
        """Configure the handlers.

        Args:
            stow: Handler of STOW-RS.
            overview: Status of the gateway.
            complete: Function that is called with the UID of a study that is declared complete, the number of its
                instances if it was given, and True if the study is accepted although something is missing. It returns
                the study's name and what is missing ("" if nothing), or None if there is no such study.
        """
        self._stow, self._overview, self._complete = stow, overview, complete

    def create_app(self, keys: ApiKeys, guard: BrowserGuard, proxies: TrustedProxies) -> Starlette:
        """Create the ASGI application; requests need one of ``keys`` and pass ``guard``; ``proxies`` are trusted."""
        routes = [
            Route("/dicom-web/studies", self._store, methods=["POST"]),
            Route("/dicom-web/studies/{study}", self._store, methods=["POST"]),
            Route("/studies/{study}/complete", self._completed, methods=["POST"]),
            Route("/status", self._status, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/livez", _alive, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/", self._page, methods=["GET"]),
        ]
        return Starlette(
            routes=routes, middleware=[Middleware(_SecurityMiddleware, keys=keys, guard=guard, proxies=proxies)]
        )

    async def _store(self, request: Request) -> Response:
        study = request.path_params.get("study")
        try:
            status, document = await self._stow.store(request, study, _owner(request))
        except StowError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except ClientDisconnect:
            return Response(status_code=499)
        return Response(json.dumps(document), status, media_type="application/dicom+json")

    async def _completed(self, request: Request) -> Response:
        count = request.query_params.get("instances", "")
        if count and not (count.isascii() and count.isdigit() and 0 < int(count) < 10**6):
            return JSONResponse({"error": "`instances` has to be the number of instances of the study."}, 400)
        study = request.path_params["study"]
        anyway = request.query_params.get("anyway", "false")
        if anyway not in ("true", "false"):
            return JSONResponse({"error": "`anyway` has to be true or false."}, 400)
        found = await anyio.to_thread.run_sync(self._complete, study, int(count) if count else None, anyway == "true")
        if found is None:
            return JSONResponse({"error": "There is no such study here."}, 404)
        name, lacking = found
        if lacking:
            return JSONResponse({"error": f"{lacking} Add ?anyway=true to have it segmented as it is."}, 409)
        return JSONResponse({"study": name}, 202)

    async def _status(self, _: Request) -> Response:
        return JSONResponse(await anyio.to_thread.run_sync(self._overview.document))

    async def _metrics(self, _: Request) -> Response:
        text = await anyio.to_thread.run_sync(self._overview.metrics)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _ready(self, _: Request) -> Response:
        trouble = await anyio.to_thread.run_sync(self._overview.trouble)
        return JSONResponse({"error": trouble}, 503) if trouble else JSONResponse({})

    async def _page(self, request: Request) -> Response:
        reload = request.query_params.get("reload") != "false"
        return HTMLResponse(render_page(await anyio.to_thread.run_sync(self._overview.document), reload=reload))


async def _alive(_: Request) -> Response:
    return JSONResponse({})


def _owner(request: Request) -> str:
    owner: str | None = request.scope.get("semiseg.owner")
    return (owner or "WEB")[:16]


class _SecurityMiddleware:
    """Checks API keys, host names and origins of each request, and adds security headers to each response."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, guard: BrowserGuard, proxies: TrustedProxies) -> None:
        self._app, self._keys, self._guard, self._proxies = app, keys, guard, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        scope = dict(scope)
        self._proxies.apply(scope)
        if scope["path"] not in PUBLIC_PATHS and (found := self._guard.check(scope)) is not None:
            status, sentence = found
            await JSONResponse({"error": sentence}, status)(scope, receive, send_with_headers)
            return
        if self._keys.required and scope["path"] not in PUBLIC_PATHS:
            key, owner = key_from_headers(scope["headers"]), None
            with contextlib.suppress(InputError):
                owner = None if key is None else self._keys.find_owner(key)
            if owner is None:
                refusal = JSONResponse(
                    {"error": "Send one of the gateway's API keys in the header `Authorization: Bearer KEY`."},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send_with_headers)
                return
            scope["semiseg.owner"] = owner
        await self._app(scope, receive, send_with_headers)
