"""``POST /infer/{model}``: segments an image of the dataset, of a session, or of the request itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semiseg.errors import Cancelled
from server.http.body import RequestBody
from server.http.limits import ApiError
from server.http.upload_handler import client_identity
from server.http.waiting_client import run_while_connected
from server.labelling.context import LabellingContext, requester_name
from server.labelling.forms import Form, receive_form
from server.labelling.models import LabellingModel
from server.labelling.record import ORIGINAL
from server.labelling.results import LabelMapResult, encode_label_map, requested_extension
from server.labelling.store import NewLabel

POLL_INTERVAL = 0.2  # seconds between two checks whether the client is still connected
_OUTPUTS = ("", "all", "image", "json", "dicom_seg")


@dataclass(frozen=True)
class InferenceInput:
    """The image to segment.

    Attributes:
        image: Id of the image in the dataset; empty if the image is not in the dataset.
        files: Files of the image.
    """

    image: str
    files: Sequence[Path]


class InferenceEndpoint:
    """Segments the image of each request while its client waits; results for dataset images are saved as drafts."""

    def __init__(self, context: LabellingContext) -> None:
        """Create the endpoint and its pool of threads."""
        self._context = context
        most = context.limits.parallel + context.limits.waiting
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="infer")

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """When the server stops, wait for the running windows."""
        yield
        await anyio.to_thread.run_sync(partial(self._pool.shutdown, wait=True, cancel_futures=True))

    async def respond(self, request: Request, body: RequestBody, folder: Path) -> Response:
        """Respond to one request."""
        output = request.query_params.get("output") or ""
        if output not in _OUTPUTS:
            raise ApiError(400, "`output` must be all, image or json.")
        if output == "dicom_seg":
            words = (
                "The images of a dataset folder are not DICOM series, so DICOM SEG is not available; use output=image."
            )
            raise ApiError(400, words)
        form = await receive_form(request, body, folder, self._context.limits)
        params = form.json("params")
        requested_extension(params)
        model = await anyio.to_thread.run_sync(self._model, request.path_params["model"])
        given = self._input(request, form)
        who, client = requester_name(request, params), client_identity(request)
        work = partial(self._segment, model, given, params, who, client, folder)
        result = await run_while_connected(self._pool, request, work)
        if output == "json":
            return JSONResponse(dict(result.params))
        if output == "image":
            headers = {
                "Content-Disposition": f'attachment; filename="{result.name}"',
                "X-Semiseg-Model": json.dumps({"name": model.name, "sha256": model.sha256}),
            }
            return Response(result.content, media_type=result.media_type, headers=headers)
        content, media_type = result.multipart()
        return Response(content, media_type=media_type)

    def _model(self, name: str) -> LabellingModel:
        model = self._context.models.current()
        if model is None:
            raise ApiError(
                404, "There is no model yet; label some images and train one, or start the server with --bundle."
            )
        if name != model.name:
            raise ApiError(404, f"The model is called {model.name}.")
        return model

    def _input(self, request: Request, form: Form) -> InferenceInput:
        if session := request.query_params.get("session_id"):
            return InferenceInput("", sorted(self._context.sessions.image_of(session).iterdir()))
        if form.files.get("file"):
            return InferenceInput("", [form.file("file").path])
        image = request.query_params.get("image", "")
        if not image:
            raise ApiError(400, "Name an image of the dataset (?image=ID), a session, or send one in the field `file`.")
        case = self._context.datastore.case(image)
        if case is None:
            raise ApiError(404, "The dataset has no image with this id.")
        return InferenceInput(image, [case.image])

    def _segment(
        self,
        model: LabellingModel,
        given: InferenceInput,
        params: Mapping[str, Any],
        who: str,
        client: str,
        folder: Path,
        stopped: Callable[[], bool],
    ) -> LabelMapResult:
        context, predictor = self._context, model.served.predictor
        if not context.limiter.acquire_unless_stopped(stopped, POLL_INTERVAL, client):
            raise Cancelled("The client disconnected before the work began.")
        try:
            scan = predictor.open(list(given.files), scratch=folder)
            prediction = predictor.predict_scan(scan, cancelled=stopped)
        finally:
            context.limiter.release(client)
        names = context.datastore.names
        array = model.label_map(prediction)
        voxels = names.count(array)
        told: dict[str, Any] = {
            "label_names": {name: names.values[name] for name in voxels},
            "model": model.name,
            "model_sha256": model.sha256,
            "warnings": prediction.warnings,
        }
        like = given.files[0] if len(given.files) == 1 else None
        if given.image and params.get("save_label") is not False:
            label = NewLabel(array, prediction.affine, like, voxels)
            record = context.datastore.save(
                given.image,
                label,
                tag=ORIGINAL,
                who=who,
                model=model.name,
                model_sha256=model.sha256,
                info={"params": {"warnings": prediction.warnings}},
            )
            told["version"] = record.version
        content, name, media_type = encode_label_map(
            array, prediction.affine, names, params, image=given.image, like=like, folder=folder
        )
        return LabelMapResult(content, name, media_type, told)
