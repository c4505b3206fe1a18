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
from server.http.access_options import AccessOptions
from server.http.limits import Limits
from server.http_listener import bind_socket, listener_url, make_uvicorn_server
from server.keys import ApiKeys
from server.labelling.app import make_labelling_app
from server.labelling.datastore import Datastore
from server.labelling.startup import LabelOptions, make_context, make_training, open_datastore
from tests.datasets import AFFINE, random_labels
from tests.polling import wait_until


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
            write_nifti(path, random_labels(seed), AFFINE)
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
    access: AccessOptions | None = None,
    **options: Any,
) -> Iterator[RunningLabelServer]:
    """Serve the dataset folder ``data`` while the block runs; its labels lie in ``state`` beside it."""
    given = LabelOptions(data, state=data.parent / "state", bundle=bundle, threads=1, **options)
    scratch = data.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    limits = limits or Limits(disk_bytes=0)
    with open_datastore(given) as datastore, bind_socket("127.0.0.1", 0, host_hint="", port_hint="") as listener:
        context = make_context(given, datastore, limits, ApiKeys(keys), scratch)
        training = make_training(given, datastore) if given.config is not None else None
        application = make_labelling_app(context, access or AccessOptions(bind_host="127.0.0.1"), training)
        server = make_uvicorn_server(application, stop_seconds=5)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        running = RunningLabelServer(listener_url(listener), datastore)
        try:
            yield running
        finally:
            running.http.close()
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
            assert list(scratch.iterdir()) == []


def parse_multipart(response: httpx.Response) -> tuple[dict[str, str], dict[str, bytes]]:
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
