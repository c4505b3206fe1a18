"""The HTTP door: STOW-RS, "this study is complete", the status page, metrics, and whether all is well."""

from __future__ import annotations

import contextlib
import html
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from semiseg.errors import InputError
from server.browser_guard import BrowserGuard
from server.forwarded import Proxies
from server.gateway.stow import Stow, StowRefused
from server.keys import Keys, key_in

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.gateway.overview import Overview

Complete = Callable[[str, "int | None", bool], "tuple[str, str] | None"]
OPEN = ("/livez", "/readyz")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Web:
    """What the door answers."""

    def __init__(self, stow: Stow, overview: Overview, complete: Complete) -> None:
        """Answer.

        Args:
            stow: takes instances.
            overview: what there is to see.
            complete: told the UID of a study that somebody calls complete, the number of its instances if it was named,
                and whether it is taken although something of it is missing. It gives its name here and what is missing
                ("" for nothing), or None where there is no such study.
        """
        self._stow, self._overview, self._complete = stow, overview, complete

    def app(self, keys: Keys, guard: BrowserGuard, proxies: Proxies) -> Starlette:
        """The ASGI application, for whoever has one of ``keys`` and passes ``guard``; ``proxies`` are believed."""
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
        return Starlette(routes=routes, middleware=[Middleware(_Guard, keys=keys, guard=guard, proxies=proxies)])

    async def _store(self, request: Request) -> Response:
        study = request.path_params.get("study")
        try:
            status, document = await self._stow.store(request, study, _owner(request))
        except StowRefused as error:
            return JSONResponse({"error": str(error)}, error.status)
        except ClientDisconnect:
            return Response(status_code=499)
        return Response(json.dumps(document), status, media_type="application/dicom+json")

    async def _completed(self, request: Request) -> Response:
        count = request.query_params.get("instances", "")
        if count and not (count.isascii() and count.isdigit() and 0 < int(count) < 10**6):
            return JSONResponse({"error": "`instances` is how many instances the study has."}, 400)
        study = request.path_params["study"]
        anyway = request.query_params.get("anyway", "false")
        if anyway not in ("true", "false"):
            return JSONResponse({"error": "`anyway` is true or false."}, 400)
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

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(page(await anyio.to_thread.run_sync(self._overview.document)))


async def _alive(_: Request) -> Response:
    return JSONResponse({})


def _owner(request: Request) -> str:
    owner: str | None = request.scope.get("semiseg.owner")
    return (owner or "WEB")[:16]


class _Guard:
    """Keys, names, origins and headers around every request."""

    def __init__(self, app: ASGIApp, keys: Keys, guard: BrowserGuard, proxies: Proxies) -> None:
        self._app, self._keys, self._guard, self._proxies = app, keys, guard, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sealed(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        scope = dict(scope)
        self._proxies.apply(scope)
        if scope["path"] not in OPEN and (found := self._guard.refusal(scope)) is not None:
            status, sentence = found
            await JSONResponse({"error": sentence}, status)(scope, receive, sealed)
            return
        if self._keys.required and scope["path"] not in OPEN:
            key, owner = key_in(scope["headers"]), None
            with contextlib.suppress(InputError):
                owner = None if key is None else self._keys.owner_of(key)
            if owner is None:
                refusal = JSONResponse(
                    {"error": "Send one of the gateway's API keys: the header `Authorization: Bearer KEY`."},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, sealed)
                return
            scope["semiseg.owner"] = owner
        await self._app(scope, receive, sealed)


_STYLE = (Path(__file__).with_name("status.css")).read_text(encoding="utf-8")


def page(document: Mapping[str, Any]) -> str:
    """The status page: the same figures as /status, for people; it loads itself anew."""
    jobs = "".join(
        f"<tr><th scope=row>{_safe(kind)}</th>" + "".join(f"<td>{count}</td>" for count in states.values()) + "</tr>"
        for kind, states in document["jobs"].items()
    )
    states: Mapping[str, int] = next(iter(document["jobs"].values()), {})
    trouble = document["trouble"]
    well = not any(document[what] for what in ("held_up", "dead_letters", "studies_in_trouble"))
    well = well and not any(one["trouble"] for what in ("worklists", "workitems") for one in document[what])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        f"<title>semiseg gateway</title><style>{_STYLE}</style></head><body><main><h1>semiseg gateway</h1>"
        f'<p class="{"good" if not trouble and well else "bad"}">{_safe(trouble or _summary(document))}</p>'
        f"<p>{document['open_studies']} studies are arriving; {document['studies']} are kept; "
        f"{document['free_bytes'] / 2**30:.1f} GB are free.</p>"
        f"<table><caption>Jobs</caption><thead><tr><th scope=col>kind</th>"
        + "".join(f"<th scope=col>{_safe(state)}</th>" for state in states)
        + f"</tr></thead><tbody>{jobs}</tbody></table>"
        + _studies(
            "Studies that are not whole, and wait for the rest or for a decision", document["studies_in_trouble"]
        )
        + _worklists("Worklists that are in trouble", document["worklists"])
        + _workitems("Workitems that are claimed", document["workitems"])
        + _rejected("Rejected associations", document["rejected"])
        + _table("Held up by others, and tried again by themselves", document["held_up"])
        + _table(
            "Dead letters: `semiseg gateway show JOB` tells all, `retry JOB` tries again", document["dead_letters"]
        )
        + "<footer>RESEARCH USE ONLY</footer></main></body></html>"
    )


def _summary(document: Mapping[str, Any]) -> str:
    held_up, letters = len(document["held_up"]), len(document["dead_letters"])
    if partial := len(document["studies_in_trouble"]):
        return f"{partial} study or studies are not whole."
    if letters:
        return f"{letters} dead letter(s) wait for an operator."
    if held_up:
        return f"{held_up} job(s) are held up by others."
    if waiting := sum(bool(one["trouble"]) for what in ("worklists", "workitems") for one in document[what]):
        return f"{waiting} worklist(s) or workitem(s) are in trouble."
    return "All is well."


def _table(caption: str, jobs: Sequence[Mapping[str, Any]]) -> str:
    if not jobs:
        return ""
    rows = "".join(
        f"<tr><td><code>{_safe(one['id'])}</code></td><td>{_safe(one['kind'])}</td>"
        f"<td><code>{_safe(one['study'])}</code></td><td>{_day(one['changed'])}</td><td>{one['tries']}</td>"
        f"<td>{_safe(one['error'])}</td></tr>"
        for one in jobs
    )
    heads = "".join(f"<th scope=col>{head}</th>" for head in ("job", "kind", "study", "since", "tries", "why"))
    return f"<table><caption>{_safe(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _studies(caption: str, studies: Sequence[Mapping[str, Any]]) -> str:
    rows = [(f"<code>{_safe(one['study'])}</code>", _day(one["since"]), _safe(one["why"])) for one in studies]
    return _rows(caption, ("study", "since", "why"), rows)


def _worklists(caption: str, worklists: Sequence[Mapping[str, Any]]) -> str:
    rows = [(_safe(one["name"]), _safe(one["trouble"])) for one in worklists if one["trouble"]]
    rows += [
        (_safe(one["name"]), f"workitem <code>{_safe(item['workitem'])}</code>: {_safe(item['why'])}")
        for one in worklists
        for item in one["passed_over"]
    ]
    return _rows(caption, ("worklist", "why"), rows)


def _workitems(caption: str, workitems: Sequence[Mapping[str, Any]]) -> str:
    heads = ("workitem", "worklist", "stage", "since", "per cent", "what")
    rows = [
        (
            f"<code>{_safe(one['workitem'])}</code>",
            _safe(one["worklist"]),
            _safe(one["stage"]),
            _day(one["since"]),
            _safe(one["progress"]),
            _safe(one["why"]),
        )
        for one in workitems
    ]
    return _rows(caption, heads, rows)


def _rejected(caption: str, rejected: Sequence[Mapping[str, Any]]) -> str:
    heads = ("address", "calling", "called", "when", "why")
    rows = [
        (_safe(one["address"]), _safe(one["calling"]), _safe(one["called"]), _day(one["time"]), _safe(one["why"]))
        for one in rejected
    ]
    return _rows(caption, heads, rows)


def _rows(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{_safe(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _safe(text: object) -> str:
    return html.escape(str(text))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
