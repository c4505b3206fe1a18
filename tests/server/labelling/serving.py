"""A labelling server in this process, on a socket of its own, and what clients ask of it."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from semiseg.volumes.nifti import write_nifti
from server.http.front import Front
from server.http.limits import Limits
from server.keys import Keys
from server.labelling.app import make_labelling_app
from server.labelling.datastore import Datastore
from server.labelling.start import LabelOptions, make_context, make_training, opened
from server.listening import bound, url_of, uvicorn_of
from tests.datasets import AFFINE, label_of
from tests.waiting import until


class RunningLabelServer:
    """A server that answers, its labels, and a client of it."""

    def __init__(self, url: str, datastore: Datastore) -> None:
        self.url = url
        self.datastore = datastore
        self.http = httpx.Client(base_url=url, timeout=120, trust_env=False)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def info(self) -> dict[str, Any]:
        return dict(self.http.get("/info/").json())

    def save(
        self,
        image: str,
        seed: int,
        *,
        tag: str = "final",
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Save a label map, another one for each seed, as 3D Slicer does."""
        body = content if content is not None else self.label_file(seed).read_bytes()
        return self.http.put(
            "/datastore/label",
            params={"image": image, "tag": tag},
            data={"params": json.dumps({"client_id": "anna", **(params or {})})},
            files={"label": ("/somebody/some where/label.nii.gz", body)},
            headers=headers,
        )

    def label_file(self, seed: int) -> Path:
        path = self.datastore.state.parent / f"drawn-{seed}.nii.gz"
        if not path.exists():
            write_nifti(path, label_of(seed), AFFINE)
        return path

    def infer(self, model: str = "threshold", params: Mapping[str, Any] | None = None, **query: str) -> httpx.Response:
        form = {"params": (None, json.dumps({"client_id": "anna", **(params or {})}))}
        return self.http.post(f"/infer/{model}", params=query, files=form)


@contextlib.contextmanager
def label_server(
    data: Path,
    *,
    bundle: Path | None = None,
    keys: Path | None = None,
    limits: Limits | None = None,
    front: Front | None = None,
    **options: Any,
) -> Iterator[RunningLabelServer]:
    """Serve the dataset folder ``data`` while the block runs; its labels lie in ``state`` beside it."""
    given = LabelOptions(data, state=data.parent / "state", bundle=bundle, threads=1, **options)
    scratch = data.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    limits = limits or Limits(disk_bytes=0)
    with opened(given) as datastore, bound("127.0.0.1", 0, other_host="", other_port="") as listener:
        context = make_context(given, datastore, limits, Keys(keys), scratch)
        training = make_training(given, datastore) if given.config is not None else None
        application = make_labelling_app(context, front or Front(bound="127.0.0.1"), training)
        server = uvicorn_of(application, stop_seconds=5)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        running = RunningLabelServer(url_of(listener), datastore)
        try:
            yield running
        finally:
            running.http.close()
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
            assert list(scratch.iterdir()) == []


def parts_of(response: httpx.Response) -> tuple[dict[str, str], dict[str, bytes]]:
    """The text fields of a multipart answer, and its files by their names."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + response.content, policy=email.policy.HTTP)
    fields, files = {}, {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        if name := part.get_filename():
            files[name] = content
        else:
            fields[part.get_param("name", header="content-disposition")] = content.decode()
    return fields, files
