"""Middleware for all requests: checks the host, origin and API key, adds security headers, and logs a line."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies
from server.http import middleware as http_middleware
from server.http.errors import to_api_error
from server.http.limits import ApiError
from server.keys import ApiKeys
from server.logs import JsonFormatter, RepeatFilter

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Logs contain the name of the route, so that ids and arbitrary request paths never reach them.
_NAMED = (
    (re.compile(r"/(activelearning|infer|train|session|model|batch|scoring|proxy|ohif)/.+"), r"/\1/{name}"),
    (re.compile(r"/(datastore|auth)/(.*/)*[^/]+"), None),
)
KNOWN_PATHS = (
    "/", "/info/", "/labels/", "/auth/", "/auth/token", "/auth/token/valid", "/datastore/", "/datastore/image",
    "/datastore/image/info", "/datastore/label", "/datastore/label/info", "/datastore/updatelabelinfo", "/train/",
    "/session/", "/logs/", "/livez", "/readyz",
)  # fmt: skip
PROBES = ("/livez", "/readyz")
PUBLIC_PATHS = ("/", "/auth/", "/auth/token", *PROBES)
"""Paths that need no key, so that a client can find out that it needs one."""
MAX_LINES = 1000


class LabellingMiddleware:
    """ASGI middleware for the labelling application."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, guard: BrowserGuard, proxies: TrustedProxies) -> None:
        """Wrap ``app``."""
        self._app, self._keys, self._guard, self._proxies = app, keys, guard, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        since, status = time.monotonic(), 0
        scope = dict(scope)
        peer = scope.get("client")
        self._proxies.apply(scope)
        scope["semiseg.direct"] = scope.get("client") == peer
        path = scope["path"]
        page = bool(http_middleware.PAGE_FILE.fullmatch(path))

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                http_middleware.add_security_headers(message, cacheable=page)
            await send(message)

        try:
            try:
                if path not in PROBES and (found := self._guard.check(scope)) is not None:
                    raise ApiError(*found)
                if self._keys.required and path not in PUBLIC_PATHS and not page:
                    scope["semiseg.owner"] = authenticate(self._keys, scope)
                await self._app(scope, receive, send_with_headers)
            except Exception as error:  # noqa: BLE001 - the outermost handler
                refusal = to_api_error(error)
                if status:
                    raise ConnectionAbortedError("The response failed after its beginning was sent.") from None
                await error_response(refusal)(scope, receive, send_with_headers)
        finally:
            if path not in PROBES and not page:
                http_middleware.log_request(scope, route_name(path), status, time.monotonic() - since)


def authenticate(keys: ApiKeys, scope: Scope) -> str:
    """Return the owner of the API key of a request; MONAI Label's clients log in with the key."""
    return http_middleware.authenticate(keys, scope, ", or log in with the key as the password")


def error_response(refusal: ApiError) -> Response:
    """Make the JSON response of an error: ``error`` as in semiseg's server, and ``detail`` as in MONAI Label."""
    sentence = str(refusal)
    return JSONResponse({"error": sentence, "detail": sentence}, refusal.status, headers=refusal.headers)


def route_name(path: str) -> str:
    """The name of a path's route in the log; ``other`` for a path that is not served."""
    if path in KNOWN_PATHS or f"{path}/" in KNOWN_PATHS:
        return path
    for pattern, name in _NAMED:
        if name is not None and (found := pattern.fullmatch(path)):
            return found.expand(name)
    return "other"


class RecentLog(logging.Handler):
    """The last lines of the log, for ``GET /logs/``."""

    def __init__(self) -> None:
        """Keep :data:`MAX_LINES` lines."""
        super().__init__()
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self.setFormatter(JsonFormatter())
        self.addFilter(RepeatFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record, formatted as in the log."""
        self.lines.append(self.format(record))

    def last(self, count: int) -> Sequence[str]:
        """The last ``count`` lines, oldest first."""
        lines = list(self.lines)
        return lines[-count:] if count > 0 else lines
