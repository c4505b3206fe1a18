"""The BentoML service around the application: health checks and life cycle are BentoML's, the rest is ours."""

from __future__ import annotations

from collections.abc import Callable

import bentoml
from starlette.middleware.cors import CORSMiddleware

from server.http.access_options import AccessOptions
from server.http.app import ServerContext, make_app
from server.http.middleware import RequestMiddleware
from server.http.openapi import RESPONSE_HEADERS
from server.keys import ApiKeys


def make_service(
    context: ServerContext,
    keys: ApiKeys,
    warm: Callable[[], None] = lambda: None,
    *,
    access: AccessOptions | None = None,
) -> bentoml.Service[object]:
    """A service that answers with the models of ``context``; it warms them up once it runs and then calls ``warm``.

    ``access`` says by which names it may be called, which pages of others may use it, and which proxies are believed;
    without it every name is good, since nobody said where the service listens.

    The service has no BentoML API method: BentoML would read an upload of any size before our code sees it, and answer
    errors in its own words. Its metrics and its access log are off: they keep every path that a client makes up.
    """

    access = access or AccessOptions(hosts=("*",))
    guard, proxies = access.browser_guard(keys=keys.required), access.trusted_proxies()

    class Segmentation:
        """Segments scans."""

        def __init__(self) -> None:
            context.models.warm_up_in_background(warm)

        async def __is_ready__(self) -> bool:
            return context.models.ready

    service = bentoml.service(
        name="semiseg",
        # The time limit is ours too: BentoML's would answer past the edge, unsealed and uncounted.
        traffic={"timeout": context.limits.request_seconds + 60},
        metrics={"enabled": False},
        logging={"access": {"enabled": False}},
    )(Segmentation)
    if access.origins:  # outermost: a browser asks beforehand, without a key
        service.add_asgi_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Idempotency-Key", "Content-Type"],
            expose_headers=["Content-Disposition", "Location", "Retry-After", *RESPONSE_HEADERS],
        )
    service.add_asgi_middleware(RequestMiddleware, keys=keys, metrics=context.metrics, guard=guard, proxies=proxies)
    service.mount_asgi_app(make_app(context), path="/", name="semiseg")
    return service
