"""An archive over DICOMweb written for the tests, which gives studies wrongly in whichever way a test asks for."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

BOUNDARY = b"BOUND"
EncodedInstances = list[bytes]


class DicomwebPeer:
    """What the archive has, and how it answers.

    Attributes:
        studies: Files by Study Instance UID.
        responders: Function that gives a study, by UID; those that are not named are given well.
        rows: Further attributes of a study's row of QIDO-RS, in DICOM JSON, by UID.
        page: Number of rows that it gives at a time, None for as many as are asked for.
        filters: True if it looks for the study that is asked for.
        below: True if it answers queries for series and instances.
        requested_paths: Paths that it was asked for.
        url: DICOMweb root of the peer.
    """

    def __init__(self) -> None:
        self.studies: dict[str, EncodedInstances] = {}
        self.responders: dict[str, Callable[[DicomwebRequestHandler, EncodedInstances], None]] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.below = self.filters = True
        self.page: int | None = None
        self.requested_paths: list[str] = []
        self.url = ""

    def add(self, folder: Path, **attributes: str) -> str:
        """Take the study of a folder; its UID."""
        objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
        for one in objects:
            one.StudyDate = f"{datetime.date.today():%Y%m%d}"
            for keyword, value in attributes.items():
                setattr(one, keyword, value)
        uid = str(objects[0].StudyInstanceUID)
        self.studies[uid] = [encode_instance(one) for one in objects]
        return uid


class DicomwebRequestHandler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    peer: DicomwebPeer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """QIDO-RS and WADO-RS."""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.peer.requested_paths.append(parts.path)
        path = parts.path.removeprefix("/dicom-web/studies").strip("/").split("/")
        if path == [""]:
            wanted = query.get("StudyInstanceUID") if self.peer.filters else None
            self.rows([self._row(uid) for uid in self.peer.studies if wanted in (None, uid)], query)
        elif len(path) == 1 and path[0] in self.peer.studies:
            self.peer.responders.get(path[0], send_study)(self, self.peer.studies[path[0]])
        elif len(path) == 3 and path[1] == "series" and path[0] in self.peer.studies:
            files = [
                file
                for file in self.peer.studies[path[0]]
                if pydicom.dcmread(io.BytesIO(file)).SeriesInstanceUID == path[2]
            ]
            self.peer.responders.get(path[0], send_study)(self, files)
        elif len(path) == 2 and self.peer.below:
            headers = [pydicom.dcmread(io.BytesIO(file)) for file in self.peer.studies[path[0]]]
            if path[1] == "series":
                uids = [str(one.SeriesInstanceUID) for one in headers]
                modality_of = {str(one.SeriesInstanceUID): str(one.Modality) for one in headers}
                found = [
                    {
                        "0020000E": ui_element(uid),
                        "00201209": is_element(uids.count(uid)),
                        "00080060": {"vr": "CS", "Value": [modality_of[uid]]},
                    }
                    for uid in dict.fromkeys(uids)
                ]
            else:
                found = [{"00080018": ui_element(str(one.SOPInstanceUID))} for one in headers]
            self.rows(found, query)
        else:
            self.rows([], query, 404)

    def do_POST(self) -> None:
        """What a study is given with answers a request that stores, too."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.peer.responders[self.path.rsplit("/", 1)[1]](self, [])

    def _row(self, uid: str) -> dict[str, Any]:
        row = {"0020000D": ui_element(uid), "00201208": is_element(len(self.peer.studies[uid]))}
        return {name: value for name, value in (row | self.peer.rows.get(uid, {})).items() if value is not None}

    def rows(self, found: list[dict[str, Any]], query: dict[str, str], status: int = 200) -> None:
        """Answer with DICOM JSON."""
        offset, limit = int(query.get("offset", 0)), self.peer.page or int(query.get("limit", 10**6))
        self.answer(json.dumps(found[offset : offset + limit]).encode(), status, "application/dicom+json")

    def answer(
        self,
        content: bytes,
        status: int = 200,
        kind: str = 'multipart/related; type="application/dicom"; boundary=BOUND',
        length: int | None = None,
        **headers: str,
    ) -> None:
        """Answer, with a Content-Length that may lie; a negative one is left out, and the connection closed."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        length = len(content) if length is None else length
        if length >= 0:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        if length != len(content):
            self.close_connection = True


@contextlib.contextmanager
def dicomweb_peer() -> Iterator[DicomwebPeer]:
    """A peer that answers on loopback."""
    peer = DicomwebPeer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (DicomwebRequestHandler,), {"peer": peer}))
    peer.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()


def encode_instance(one: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def ui_element(uid: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}


def is_element(value: object) -> dict[str, Any]:
    return {"vr": "IS", "Value": [value]}


def multipart_body(files: EncodedInstances, *, closed: bool = True) -> bytes:
    parts = b"".join(
        b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files
    )
    return parts + (b"--" + BOUNDARY + b"--\r\n" if closed else b"")


def send_study(answer: DicomwebRequestHandler, files: EncodedInstances) -> None:
    answer.answer(multipart_body(files))


def send_chunked(answer: DicomwebRequestHandler, files: EncodedInstances, *, share: float = 1.0) -> None:
    """In chunks; with a share below 1 the connection ends in the middle of them."""
    answer.send_response(200)
    answer.send_header("Content-Type", "multipart/related; type=application/dicom; boundary=BOUND")
    answer.send_header("Transfer-Encoding", "chunked")
    answer.end_headers()
    content = multipart_body(files)
    content = content[: int(len(content) * share)]
    for start in range(0, len(content), 5000):
        chunk = content[start : start + 5000]
        answer.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    if share < 1:
        answer.close_connection = True
    else:
        answer.wfile.write(b"0\r\n\r\n")
