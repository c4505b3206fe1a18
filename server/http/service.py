"""The BentoML service of the application; BentoML provides only the health checks and the life cycle."""

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
    """Make the service.

    The service has no BentoML API method, because BentoML would read an upload of any size before our code is called,
    and respond to errors with its own messages. BentoML's metrics and access log are off, because they record arbitrary
    request paths.

    Args:
        context: Objects that the endpoints share; its models are warmed up once the service runs.
        keys: API keys of the users.
        warm: Function that is called after the warm-up.
        access: Allowed host names and origins, and trusted proxies. If None, every host name is allowed, since it is
            not known where the service listens.
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
        # UploadHandler has the time limit; a response of BentoML's would bypass the middleware, with no security
        # headers and no metrics.
        traffic={"timeout": context.limits.request_seconds + 60},
        metrics={"enabled": False},
        logging={"access": {"enabled": False}},
    )(Segmentation)
    if access.origins:  # outermost, since a browser's preflight request has no key
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
