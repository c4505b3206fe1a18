"""Middleware for all requests: checks the route, the host and the API key, adds security headers, and logs a line."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import TYPE_CHECKING

from semiseg.errors import InputError
from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies
from server.http.errors import RETRY_AFTER, api_error_response, to_api_error
from server.http.limits import ApiError
from server.http.metrics import Metrics
from server.keys import ApiKeys, key_from_headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_FILE = re.compile(r"/page/[A-Za-z0-9_.-]+")  # files of the page, which hold no data of a user
# Names of routes for logs and metric labels, so that arbitrary request paths never reach them.
ROUTE_NAMES = (
    (re.compile(r"/(segment|jobs|models|docs\.json|metrics|livez|readyz|healthz)?"), None),
    (re.compile(r"/jobs/[^/]+"), "/jobs/{id}"),
    (re.compile(r"/jobs/[^/]+/result"), "/jobs/{id}/result"),
    (re.compile(r"/jobs/[^/]+/events"), "/jobs/{id}/events"),
    (PAGE_FILE, "/page"),
)
PROBES = ("/livez", "/readyz", "/healthz")  # allowed under every host name, since orchestrators use various ones
PUBLIC_ROUTES = ("/", "/page", *PROBES)  # need no key, since they return no user's data
UNLOGGED_ROUTES = ("/livez", "/readyz", "/healthz", "/metrics", "/page")  # requested too often for the log

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    # The viewer may compile WebAssembly and load data: and blob: URLs; everything else comes from this server.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "font-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_LOG = logging.getLogger("semiseg.requests")


class RequestMiddleware:
    """ASGI middleware for the whole application."""

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeys, metrics: Metrics, guard: BrowserGuard, proxies: TrustedProxies
    ) -> None:
        """Wrap ``app``, which gets the requests that pass all checks."""
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._guard = guard
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        since = time.monotonic()
        scope = dict(scope)
        self._proxies.apply(scope)
        route = route_name(scope["path"])
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                add_security_headers(message, cacheable=route == "/page")
            await send(message)

        try:
            try:
                if route is None:
                    raise ApiError(404, "There is nothing at this URL; /docs.json describes the interface.")
                if route not in PROBES and (found := self._guard.check(scope)) is not None:
                    raise ApiError(*found)
                if self._keys.required and route not in PUBLIC_ROUTES:
                    scope["semiseg.owner"] = authenticate(self._keys, scope)
                await self._app(scope, receive, send_with_headers)
            except Exception as error:  # noqa: BLE001 - every error becomes a response
                refusal = to_api_error(error)
                if status:
                    raise ConnectionAbortedError("The response failed after its beginning was sent.") from None
                await api_error_response(refusal)(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - since
            self._metrics.count_request(route or "other", status, seconds)
            if route not in UNLOGGED_ROUTES:
                log_request(scope, route or "other", status, seconds)


KNOWN_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


def authenticate(keys: ApiKeys, scope: Scope, hint: str = "") -> str:
    """Return the owner of the API key of a request.

    Args:
        keys: The server's keys.
        scope: ASGI scope of the request.
        hint: Another way to send a key, for the error message if none was sent.

    Raises:
        ApiError: 401, there is no key or it is not valid; 503, the keys cannot be read.
    """
    challenge = {"WWW-Authenticate": "Bearer"}
    key = key_from_headers(scope["headers"])
    if key is None:
        words = f"This server needs an API key: send the header `Authorization: Bearer KEY`{hint}."
        raise ApiError(401, words, headers=challenge)
    try:
        owner = keys.find_owner(key)
    except InputError as error:
        _LOG.error("%s", error)
        words = "The server's API keys cannot be read; its operator has to check them."
        raise ApiError(503, words, headers={"Retry-After": str(RETRY_AFTER)}) from None
    if owner is None:
        raise ApiError(401, "The API key is not, or no longer, valid on this server.", headers=challenge)
    return owner


def add_security_headers(message: Message, *, cacheable: bool = False) -> None:
    """Add :data:`SECURITY_HEADERS` to the start of a response; headers that it has already are kept.

    Args:
        message: Start of the response.
        cacheable: True for files of the page: the viewer is large and public, so browsers may cache and revalidate it.
    """
    if cacheable:
        message["headers"].append((b"cache-control", b"no-cache"))
    there = {name.lower() for name, _ in message["headers"]}
    more = ((name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items())
    message["headers"] = [*message["headers"], *(one for one in more if one[0] not in there)]


def log_request(scope: Scope, route: str, status: int, seconds: float) -> None:
    """Log a request that was answered."""
    fields = {
        "request": secrets.token_hex(4),
        "method": scope["method"] if scope["method"] in KNOWN_METHODS else "other",
        "route": route,
        "status": status,
        "seconds": round(seconds, 3),
        "client": scope.get("semiseg.owner") or (scope["client"][0] if scope.get("client") else ""),
    }
    _LOG.info("Request", extra={"fields": fields})


def route_name(path: str) -> str | None:
    """The route of a path, as it is named in logs and metrics; None for an unknown path."""
    for pattern, name in ROUTE_NAMES:
        if pattern.fullmatch(path):
            return name or path
    return None
