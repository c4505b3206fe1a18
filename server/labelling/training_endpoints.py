"""``/train/``: start, watch and stop the training of the next model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.http.body import RequestBody
from server.http.limits import ApiError
from server.labelling.context import LabellingContext, requester_name
from server.labelling.forms import receive_json
from server.labelling.tasks import TrainingService, TrainingTask

_NONE = "This server does not train models."


class TrainingEndpoints:
    """The endpoints of the training; without a training service they respond with the status 404."""

    def __init__(self, context: LabellingContext, training: TrainingService | None) -> None:
        """Create the endpoints of ``training``."""
        self._context, self._training = context, training

    def routes(self) -> list[Route]:
        """The routes, with the paths and methods of MONAI Label."""
        simple, upload = self._context.endpoint, self._context.upload
        return [
            Route("/train/", simple(self._status), methods=["GET"]),
            Route("/train/", upload(self._start_all), methods=["POST"]),
            Route("/train/", simple(self._stop), methods=["DELETE"]),
            Route("/train/{model}", upload(self._start), methods=["POST"]),
        ]

    def _trainer(self) -> TrainingService:
        if self._training is None:
            raise ApiError(404, _NONE)
        return self._training

    async def _status(self, request: Request) -> Response:
        tasks = await anyio.to_thread.run_sync(self._trainer().tasks)
        if _is_true(request, "check_if_running"):
            tasks = [task for task in tasks if task.status in ("SUBMITTED", "RUNNING")]
            if not tasks:
                raise ApiError(404, "No training is running.")
        if not tasks:
            raise ApiError(404, "No model was trained here yet.")
        if _is_true(request, "all"):
            return JSONResponse([task.document() for task in tasks])
        return JSONResponse(tasks[-1].document())

    async def _start(self, request: Request, body: RequestBody, _: Path) -> Response:
        trainer = self._trainer()
        if request.path_params["model"] != trainer.name:
            raise ApiError(404, f"The trainer is called {trainer.name}.")
        params = await receive_json(body)
        return JSONResponse((await self._started(trainer, request, params)).document())

    async def _start_all(self, request: Request, body: RequestBody, _: Path) -> Response:
        trainer = self._trainer()
        params = await receive_json(body)
        own = params.get(trainer.name)
        told = {**(own if isinstance(own, dict) else {}), "client_id": params.get("client_id")}
        task = await self._started(trainer, request, told)
        return JSONResponse({trainer.name: {"result": task.document(), "detail": None}})

    async def _started(self, trainer: TrainingService, request: Request, params: dict[str, Any]) -> TrainingTask:
        who = requester_name(request, params)
        return await anyio.to_thread.run_sync(trainer.start, params, who)

    async def _stop(self, request: Request) -> Response:
        who = requester_name(request, {})
        task = await anyio.to_thread.run_sync(self._trainer().stop, who)
        if task is None:
            raise ApiError(404, "No training is running.")
        return JSONResponse(task.document())


def _is_true(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1", "yes")
