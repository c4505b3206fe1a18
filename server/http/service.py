"""The BentoML service around the application: health, metrics, access log and time limit are BentoML's."""

from __future__ import annotations

from collections.abc import Callable

import bentoml

from server.http.app import make_app
from server.http.limits import Limits
from server.http.model import ServedModel


def make_service(
    model: ServedModel, limits: Limits, warm: Callable[[], None] = lambda: None
) -> bentoml.Service[object]:
    """A service that answers with ``model``; it warms the model up once it runs and then calls ``warm``.

    The service has no BentoML API method: BentoML would read an upload of any size before our code sees it, and answer
    errors in its own words.
    """

    class Segmentation:
        """Segments one scan per request."""

        def __init__(self) -> None:
            model.warm_up_beside(warm)

        async def __is_ready__(self) -> bool:
            return model.ready

    service = bentoml.service(name="semiseg", traffic={"timeout": limits.request_seconds})(Segmentation)
    service.mount_asgi_app(make_app(model, limits), path="/", name="semiseg")
    return service
