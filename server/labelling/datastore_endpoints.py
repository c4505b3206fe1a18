"""``/datastore/...``: the images of the dataset and their labels."""

from __future__ import annotations

import time
from calendar import timegm
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from semiseg.dataset.folder import Case
from server.http.body import RequestBody
from server.http.limits import ApiError
from server.labelling.context import LabellingContext, display_path, printable, query, requester_name
from server.labelling.datastore import KnownLabel
from server.labelling.forms import receive_form
from server.labelling.label_input import read_label
from server.labelling.record import DATASET, FINAL, state_for_tag

_OUTPUTS = ("stats", "all", "train")


class DatastoreEndpoints:
    """The endpoints that read and save labels."""

    def __init__(self, context: LabellingContext) -> None:
        """Serve the datastore of ``context``."""
        self._context = context
        self._store = context.datastore

    def routes(self) -> list[Route]:
        """The routes, with the paths and methods of MONAI Label."""
        simple, upload = self._context.endpoint, self._context.upload
        return [
            Route("/datastore/", simple(self._list), methods=["GET"]),
            Route("/datastore/", upload(self._no_new_image), methods=["PUT"]),
            Route("/datastore/", simple(self._no_image_deleted), methods=["DELETE"]),
            Route("/datastore/image", simple(self._image), methods=["GET"]),
            Route("/datastore/image", upload(self._no_new_image), methods=["PUT"]),
            Route("/datastore/image", simple(self._no_image_deleted), methods=["DELETE"]),
            Route("/datastore/image/info", simple(self._image_info), methods=["GET"]),
            Route("/datastore/label", simple(self._label), methods=["GET"]),
            Route("/datastore/label", upload(self._save), methods=["PUT"]),
            Route("/datastore/label", simple(self._withdraw), methods=["DELETE"]),
            Route("/datastore/label/info", simple(self._label_info), methods=["GET"]),
            Route("/datastore/label/info", upload(self._add_info), methods=["PUT"]),
            Route("/datastore/updatelabelinfo", upload(self._add_info), methods=["PUT"]),
        ]

    async def _list(self, request: Request) -> Response:
        output = request.query_params.get("output") or "stats"
        if output not in _OUTPUTS:
            raise ApiError(400, f"`output` must be {', '.join(_OUTPUTS[:-1])} or {_OUTPUTS[-1]}.")
        make = {"stats": lambda: self.statistics(), "all": self._objects, "train": lambda: self._pairs(request)}[output]
        return JSONResponse(await anyio.to_thread.run_sync(make))

    def statistics(self) -> dict[str, Any]:
        """Number of training scans, number of those with a final label, and number of labels of each tag."""
        store = self._store
        train = [image for image in store.dataset.cases if image in store.base.train]
        tags = Counter(tag for image in store.dataset.cases for tag in store.labels(image))
        waiting = set(store.waiting())
        return {
            "total": len(train),
            "completed": len([image for image in train if image not in waiting]),
            "label_tags": dict(tags),
        }

    def _objects(self) -> dict[str, Any]:
        dataset = self._store.dataset
        return {
            "name": dataset.name,
            "description": "",
            "images_dir": "imagesTr",
            "labels_dir": "labels",
            "objects": {image: self._object(case) for image, case in dataset.cases.items()},
        }

    def _object(self, case: Case) -> dict[str, Any]:
        labels = {tag: self._described(label) for tag, label in self._store.labels(case.id).items()}
        return {"image": {"ext": _ending(case.image), "info": _image_info(case)}, "labels": labels}

    def _described(self, label: KnownLabel) -> dict[str, Any]:
        return {"ext": _ending(label.file), "info": make_label_info(label, self._store.names.values)}

    def _pairs(self, request: Request) -> list[dict[str, str]]:
        split = self._store.split()
        pairs = ((image, self._store.label(image, FINAL)) for image in (*(split.labelled or ()), *split.validation))
        cases = self._store.dataset.cases
        return [
            {"image": display_path(request, cases[image].image), "label": display_path(request, label.file)}
            for image, label in pairs
            if label is not None
        ]

    async def _no_new_image(self, _: Request, __: RequestBody, ___: Path) -> Response:
        raise self._images_are_fixed()

    async def _no_image_deleted(self, _: Request) -> Response:
        raise self._images_are_fixed()

    @staticmethod
    def _images_are_fixed() -> ApiError:
        return ApiError(
            403,
            "The images are those of the dataset folder and cannot be added or deleted over the network; the server's "
            "operator adds scans with `semiseg collect --add`. To segment another image, create a session.",
        )

    def _case(self, image: str) -> Case:
        case = self._store.case(image)
        if case is None:
            raise ApiError(404, "The dataset has no image with this id.")
        return case

    async def _image(self, request: Request) -> Response:
        case = self._case(query(request, "image"))
        if not case.image.is_file():
            raise ApiError(404, "The image's file is missing from the dataset folder.")
        if asked := request.query_params.get("check_sum"):
            algorithm, _, digest = asked.rpartition(":")
            found = await anyio.to_thread.run_sync(self._store.checksum, case.image)
            if algorithm.upper() not in ("", "SHA256") or digest.lower() != found:
                raise ApiError(404, "The image has another SHA-256.")
        return FileResponse(case.image, media_type="application/octet-stream", filename=case.image.name)

    async def _image_info(self, request: Request) -> Response:
        case = self._case(query(request, "image"))
        return JSONResponse({**_image_info(case), "path": display_path(request, case.image)})

    def _known(self, request: Request) -> KnownLabel:
        image = query(request, "label", "image", "id")
        tag = request.query_params.get("tag") or FINAL
        label = self._store.label(self._case(image).id, tag)
        if label is None or not label.file.is_file():
            raise ApiError(404, "The image has no label with this tag.")
        return label

    async def _label(self, request: Request) -> Response:
        label = await anyio.to_thread.run_sync(self._known, request)
        image = self._case(query(request, "label", "image", "id"))
        name = f"{image.id}{_ending(label.file)}"
        return FileResponse(label.file, media_type="application/octet-stream", filename=name)

    async def _label_info(self, request: Request) -> Response:
        label = await anyio.to_thread.run_sync(self._known, request)
        return JSONResponse(make_label_info(label, self._store.names.values))

    async def _save(self, request: Request, body: RequestBody, folder: Path) -> Response:
        case = self._case(query(request, "image"))
        tag = request.query_params.get("tag") or FINAL
        state_for_tag(tag)
        if tag == DATASET:
            raise ApiError(422, f"The tag {DATASET} is reserved for labels of the dataset folder; choose another one.")
        form = await receive_form(request, body, folder, self._context.limits)
        params, sent = form.json("params"), form.file("label")
        who = requester_name(request, params)

        def save() -> dict[str, Any]:
            label = read_label(sent.path, case, self._store.names, params.get("label_info"))
            model = printable(params.get("model"))
            record = self._store.save(case.id, label, tag=tag, who=who, model=model, info=params)
            return {"image": case.id, "label": case.id, "version": record.version, "voxels": record.voxels}

        return JSONResponse(await anyio.to_thread.run_sync(save))

    async def _withdraw(self, request: Request) -> Response:
        image = self._case(query(request, "id", "label")).id
        tag = query(request, "tag")
        who = requester_name(request, dict(request.query_params))
        if not await anyio.to_thread.run_sync(self._store.withdraw, image, tag, who):
            raise ApiError(
                404,
                "No label with this tag was saved here. A label of the dataset folder itself cannot be withdrawn; save "
                "another one.",
            )
        return JSONResponse({})

    async def _add_info(self, request: Request, body: RequestBody, folder: Path) -> Response:
        image = self._case(query(request, "label")).id
        tag = query(request, "tag")
        form = await receive_form(request, body, folder, self._context.limits)
        info = form.json("info") or form.json("params")
        who = requester_name(request, info)
        record = await anyio.to_thread.run_sync(self._store.store.add_info, image, tag, info, who)
        if record is None:
            raise ApiError(404, "No label with this tag was saved here.")
        return JSONResponse({"image": image, "label": image, "version": record.version})


def make_label_info(label: KnownLabel, values: Mapping[str, int]) -> dict[str, Any]:
    """Make the document about a label for clients.

    3D Slicer assigns the names in ``params.label_names`` to the values that occur in a label map, in ascending order;
    therefore only names that occur are listed there.
    """
    record = label.record
    if record is None:
        return {"ts": int(label.file.stat().st_mtime), "name": label.file.name, "state": FINAL, "who": "the dataset"}
    info = {key: value for key, value in label.info.items() if key != "params"}
    said = label.info.get("params")
    params = said if isinstance(said, dict) else {}
    present = {name: value for name, value in values.items() if name in record.voxels}
    return {
        **info,
        "ts": timegm(time.strptime(record.when, "%Y-%m-%dT%H:%M:%SZ")),
        "name": label.file.name,
        "version": record.version,
        "state": record.state,
        "who": record.who,
        "when": record.when,
        "model": record.model,
        "checksum": f"SHA256:{record.sha256}",
        "params": {**params, "label_names": present},
    }


def _image_info(case: Case) -> dict[str, Any]:
    moment = int(case.image.stat().st_mtime) if case.image.is_file() else 0
    return {"ts": moment, "name": case.image.name}


def _ending(path: Path) -> str:
    """The extension of a file, with ``.nii.gz`` as one extension."""
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
