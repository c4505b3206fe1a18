"""The routes that BentoML mounts: POST /segment, the description of the interface, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from server.http.endpoint import SegmentEndpoint, error_response
from server.http.limits import Limits
from server.http.model import ServedModel
from server.http.openapi import openapi_document

_PAGE = Path(__file__).with_name("page.html")


def make_app(model: ServedModel, limits: Limits) -> Starlette:
    """The ASGI application that answers with ``model`` within ``limits``."""
    endpoint = SegmentEndpoint(model, limits)
    document = openapi_document(model.segmenter.manifest, limits)
    page = _PAGE.read_text(encoding="utf-8")

    async def describe(_: Request) -> Response:
        return JSONResponse(document)

    # BentoML's own page at / loads a tracking script from another company's server; this one loads nothing from afar.
    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def wrong_method(_: Request, __: Exception) -> Response:
        return error_response(405, "POST a scan to /segment; the page / describes how.", {"Allow": "POST"})

    return Starlette(
        routes=[
            Route("/segment", endpoint.respond, methods=["POST"], name="segment"),
            Route("/docs.json", describe, methods=["GET"], name="describe"),
            Route("/", show, methods=["GET"], name="page"),
        ],
        exception_handlers={405: wrong_method},
        lifespan=endpoint.lifespan,
    )
