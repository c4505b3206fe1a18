"""Peers of the gateway whose answers a test decides: archives by C-STORE and STOW-RS, servers, and silent ports."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    Verification,
)

PATIENT = "Mueller^Hans"
INVALID_URLS = ["http://archive:port/dicom-web", "http://archive:99999/", "http://[archive/"]  # as a redirect's address
SOP_CLASSES = {"seg": SegmentationStorage, "sr": Comprehensive3DSRStorage, "rtstruct": RTStructureSetStorage}


def make_result_file(folder: Path, form: str, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """A small file of the SOP class of a form, with values of every kind of VR that a conversion could spoil."""
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = SOP_CLASSES[form], generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid()
    one.PatientName, one.PatientID = PATIENT, "4711"
    one.SpecificCharacterSet = "ISO_IR 192"
    one.SeriesDescription = "Übersicht"
    one.ImagePositionPatient = [1.5, -2.25, 3.0]
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = generate_uid()
    inner.RecommendedDisplayCIELabValue = [1, 65535, 3]
    one.SegmentSequence = [inner]
    if form == "seg":
        one.Rows, one.Columns, one.NumberOfFrames = 4, 6, "2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.SamplesPerPixel = 8, 8, 7, 1
        one.PixelRepresentation, one.PhotometricInterpretation = 0, "MONOCHROME2"
        one.PixelData = bytes(range(48))
        one["PixelData"].VR = "OB"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = syntax
    file = folder / f"{form}-{len(list(folder.iterdir())):05d}.dcm"
    one.save_as(file, enforce_file_format=True)
    return file


class FakeStorageSCP:
    """A storage SCP.

    Attributes:
        port: Port that it listens on.
        got: Data sets that it was sent, each with its status, in order.
        associations: Number of associations that it accepted.
    """

    def __init__(
        self, status: Callable[[evt.Event, int], Dataset | int], accepted: Mapping[str, Sequence[UID]]
    ) -> None:
        self.received: list[tuple[Dataset, int]] = []
        self.associations = 0
        entity = AE(ae_title="ARCHIVE")
        entity.maximum_associations = 50
        for sop_class, syntaxes in accepted.items():
            entity.add_supported_context(sop_class, list(syntaxes))
        entity.add_supported_context(Verification)

        def store(event: evt.Event) -> Dataset | int:
            answer = status(event, len(self.received) + 1)
            one = event.dataset
            one.file_meta = event.file_meta
            self.received.append((one, answer if isinstance(answer, int) else int(answer.Status)))
            return answer

        def accepted_one(_: evt.Event) -> None:
            self.associations += 1

        self._server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_ACCEPTED, accepted_one)]
        )
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()


ALL_CONTEXTS = {
    str(one.abstract_syntax): (ExplicitVRLittleEndian, ImplicitVRLittleEndian) for one in AllStoragePresentationContexts
}


@contextlib.contextmanager
def fake_storage_scp(
    status: Callable[[evt.Event, int], Dataset | int] = lambda *_: 0x0000,
    accepted: Mapping[str, Sequence[UID]] = ALL_CONTEXTS,
) -> Iterator[FakeStorageSCP]:
    """An archive whose answer to each C-STORE is ``status(event, number)``, from number 1."""
    archive = FakeStorageSCP(status, accepted)
    try:
        yield archive
    finally:
        archive.close()


class HttpExchange:
    """One HTTP request and the answer to it."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._handler, self.body = handler, body
        self.method, self.path, self.headers = handler.command, handler.path, handler.headers

    @property
    def objects(self) -> list[Dataset]:
        """The DICOM objects of a STOW-RS request."""
        found = re.search(r'boundary="?([^";]+)', self.headers.get("Content-Type", ""))
        if found is None:
            return []
        parts = self.body.split(b"--" + found.group(1).encode())[1:-1]
        return [pydicom.dcmread(io.BytesIO(part.split(b"\r\n\r\n", 1)[1][:-2])) for part in parts]

    def reply(self, status: int, body: bytes | object = b"", media_type: str = "", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._handler.send_response(status)
        if media_type:
            self._handler.send_header("Content-Type", media_type)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.send_header("Content-Length", str(len(content)))
        self._handler.end_headers()
        self._handler.wfile.write(content)


@contextlib.contextmanager
def http_peer(answer: Callable[[HttpExchange], None]) -> Iterator[tuple[str, list[HttpExchange]]]:
    """An HTTP server whose answers a test decides; its URL and the requests that it got."""
    seen: list[HttpExchange] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _any(self) -> None:
            exchange = HttpExchange(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            seen.append(exchange)
            with contextlib.suppress(ConnectionError):
                answer(exchange)

        def do_GET(self) -> None:
            self._any()

        def do_POST(self) -> None:
            self._any()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def stow_response(stored: Sequence[Dataset] = (), failed: Mapping[str, int] | None = None, warning: int = 0) -> Any:
    """The DICOM JSON of an answer to STOW-RS."""

    def item(uid: str, tag: str, reason: int) -> dict[str, Any]:
        told = {"00081155": {"vr": "UI", "Value": [uid]}}
        return told | ({tag: {"vr": "US", "Value": [reason]}} if reason else {})

    found: dict[str, Any] = {}
    if stored:
        items = [item(str(one.SOPInstanceUID), "00081196", warning) for one in stored]
        found["00081199"] = {"vr": "SQ", "Value": items}
    if failed:
        found["00081198"] = {"vr": "SQ", "Value": [item(uid, "00081197", reason) for uid, reason in failed.items()]}
    return found


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers, as a process that hangs or a firewall in between."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield int(listener.getsockname()[1])
