"""The BentoML service around the application: health checks and life cycle are BentoML's, the rest is ours."""

from __future__ import annotations

from collections.abc import Callable

import bentoml
from starlette.middleware.cors import CORSMiddleware

from server.http.app import House, make_app
from server.http.edge import Edge
from server.http.front import Front
from server.http.openapi import HEADERS
from server.keys import Keys


def make_service(
    house: House, keys: Keys, warm: Callable[[], None] = lambda: None, *, front: Front | None = None
) -> bentoml.Service[object]:
    """A service that answers with the models of ``house``; it warms them up once it runs and then calls ``warm``.

    ``front`` says by which names it may be called, which pages of others may use it, and which proxies are believed;
    without it every name is good, since nobody said where the service listens.

    The service has no BentoML API method: BentoML would read an upload of any size before our code sees it, and answer
    errors in its own words. Its metrics and its access log are off: they keep every path that a client makes up.
    """

    front = front or Front(hosts=("*",))
    guard, proxies = front.guard(keys=keys.required), front.trusted()

    class Segmentation:
        """Segments scans."""

        def __init__(self) -> None:
            house.models.warm_up_beside(warm)

        async def __is_ready__(self) -> bool:
            return house.models.ready

    service = bentoml.service(
        name="semiseg",
        # The time limit is ours too: BentoML's would answer past the edge, unsealed and uncounted.
        traffic={"timeout": house.limits.request_seconds + 60},
        metrics={"enabled": False},
        logging={"access": {"enabled": False}},
    )(Segmentation)
    if front.origins:  # outermost: a browser asks beforehand, without a key
        service.add_asgi_middleware(
            CORSMiddleware,
            allow_origins=list(front.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Idempotency-Key", "Content-Type"],
            expose_headers=["Content-Disposition", "Location", "Retry-After", *HEADERS],
        )
    service.add_asgi_middleware(Edge, keys=keys, metrics=house.metrics, guard=guard, proxies=proxies)
    service.mount_asgi_app(make_app(house), path="/", name="semiseg")
    return service
