"""The ASGI application: its endpoints and the objects that they share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from server.http.endpoint import SegmentEndpoint
from server.http.errors import error_response
from server.http.job_endpoints import JobEndpoints
from server.http.job_store import JobStore
from server.http.limits import AdmissionControl, Limits
from server.http.metrics import Metrics
from server.http.models import ServedModels
from server.http.openapi import openapi_document
from server.http.upload_handler import UploadHandler
from server.jobs.fair_limiter import FairLimiter

_PAGE = Path(__file__).with_name("page")


@dataclass(frozen=True)
class ServerContext:
    """The objects that all endpoints of a server process share.

    Attributes:
        models: Models that the server offers.
        limits: Limits of requests.
        scratch: Folder for uploads; with ``job_store``, its folder for unfinished work.
        job_store: State folder of /jobs; None if jobs are turned off.
        metrics: Prometheus metrics of the process.
    """

    models: ServedModels
    limits: Limits
    scratch: Path
    job_store: JobStore | None
    metrics: Metrics

    @classmethod
    def create(cls, models: ServedModels, limits: Limits, scratch: Path, job_store: JobStore | None) -> ServerContext:
        """Create a context with new metrics."""
        return cls(models, limits, scratch, job_store, Metrics(models, scratch, job_store))


def make_app(context: ServerContext) -> Starlette:
    """Make the ASGI application."""
    handler = UploadHandler(
        context.models,
        context.limits,
        AdmissionControl(context.limits, context.scratch),
        context.metrics,
        context.scratch,
    )
    # Jobs and requests share one limiter, so that together they hold no more volumes in memory than either alone.
    limiter = FairLimiter(context.limits.parallel)
    segment = SegmentEndpoint(handler, limiter)
    jobs = JobEndpoints(handler, context.job_store, limiter) if context.job_store else None
    document = openapi_document(context.models, context.limits, jobs=jobs is not None)
    page = (_PAGE / "index.html").read_text(encoding="utf-8")

    async def describe(_: Request) -> Response:
        return JSONResponse(document)

    async def models(_: Request) -> Response:
        return JSONResponse([entry.model_dump(mode="json") for entry in context.models.entries()])

    async def metrics(_: Request) -> Response:
        text = await anyio.to_thread.run_sync(context.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4")

    # BentoML's own page at / loads a tracking script from another company's server; this page loads nothing external.
    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def wrong_method(request: Request, __: Exception) -> Response:
        path = request.url.path
        allowed = _methods(routes, path)
        what = "POST a scan to /segment" if path == "/segment" else f"This URL allows {' and '.join(allowed)} only"
        words = f"{what}; see /docs.json for a description."
        return error_response(405, words, {"Allow": ", ".join(allowed)})

    async def no_jobs(_: Request) -> Response:
        words = "This server has no job queue; its operator can turn it on with `semiseg serve --state FOLDER`."
        return error_response(404, words)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(segment.lifespan())
            if jobs is not None:
                await stack.enter_async_context(jobs.lifespan())
            yield

    routes: list[BaseRoute] = [
        Route("/segment", segment.respond, methods=["POST"], name="segment"),
        *(
            jobs.routes()
            if jobs is not None
            else [Route("/jobs{rest:path}", no_jobs, methods=["GET", "POST", "DELETE"])]
        ),
        Route("/models", models, methods=["GET"], name="models"),
        Route("/metrics", metrics, methods=["GET"], name="metrics"),
        Route("/docs.json", describe, methods=["GET"], name="describe"),
        Route("/", show, methods=["GET"], name="page"),
        Mount("/page", StaticFiles(directory=_PAGE), name="files"),
    ]
    return Starlette(routes=routes, exception_handlers={405: wrong_method}, lifespan=lifespan)


def _methods(routes: Sequence[BaseRoute], path: str) -> list[str]:
    """The methods that a path allows."""
    fitting = [route for route in routes if isinstance(route, Route) and route.path_regex.fullmatch(path)]
    return sorted({method for route in fitting for method in route.methods or ()} - {"HEAD"})
