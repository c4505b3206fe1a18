"""A client of a semiseg server: a scan goes up, its segmentation comes down. Needs httpx and no engine."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx

from semiseg.errors import InputError, SemisegError
from semiseg.outputs.kind import Kind
from semiseg.volumes.wishes import Paths, Wishes

Files = Paths | Mapping[str, Paths]
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """What the server sent back.

    Attributes:
        body: the file: .nii.gz, DICOM, or JSON text.
        media_type: ``application/gzip``, ``application/dicom`` or ``application/json``.
        millilitres: volume of each segment by name.
        seconds: time per stage on the server.
        model: identity of the model: name, sha256, method, version.
        remarks: what was noticed about the scan or done to it: pairs of a code and a sentence.
    """

    body: bytes
    media_type: str
    millilitres: dict[str, float]
    seconds: dict[str, float]
    model: dict[str, Any]
    remarks: tuple[tuple[str, str], ...] = ()


class Client:
    """Talks to the server at ``url``; a context manager that closes its connections."""

    def __init__(self, url: str, *, timeout: float = 3600.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: such as ``http://127.0.0.1:3000``.
            timeout: seconds to wait for one answer.

        Raises:
            InputError: not an http or https address.
        """
        self.url = url.rstrip("/")
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url!r} is no address of a server ({error}).") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise InputError(f"{url!r} is no address of a server; write it like http://127.0.0.1:3000.")
        # trust_env: a proxy set for the internet must not see scans that stay in the house.
        self._http = httpx.Client(timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS), trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether a server answers there and its model is warm; False too when nobody answers."""
        try:
            return self._http.get(f"{self.url}/readyz", timeout=_CONNECT_SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def segment(
        self, paths: Files, answer: Kind | None = None, *, wishes: Wishes | None = None
    ) -> bytes | dict[str, Any]:
        """Segment one scan; JSON comes as a dict, the other forms as the bytes of their file. See :meth:`ask`."""
        reply = self.ask(paths, answer, wishes=wishes)
        if reply.media_type == "application/json":
            document: dict[str, Any] = json.loads(reply.body)
            return document
        return reply.body

    def ask(self, paths: Files, answer: Kind | None = None, *, wishes: Wishes | None = None) -> Answer:
        """Segment one scan.

        Args:
            paths: a NIfTI file, a zip, a folder of DICOM files (sent as one zip without names), or DICOM files; or
                such for each channel, by its name.
            answer: the form of the answer; None lets the server choose by the scan.
            wishes: which series to take, and what to refuse or to trust.

        Raises:
            InputError: there is no such file, or the server refused the scan (HTTP 4xx); the sentence is the server's.
            SemisegError: nobody answers at the address, the server failed (5xx), or what answers is no semiseg server.
        """
        wishes = wishes or Wishes()
        asked = {"answer": answer, "series": wishes.series}
        fields = {name: value for name, value in asked.items() if value}
        fields |= {name: "true" for name in ("strict", "aligned") if getattr(wishes, name)}
        named = {f"channel:{name}": of for name, of in paths.items()} if isinstance(paths, Mapping) else {"scan": paths}
        with contextlib.ExitStack() as stack:
            files = [part for name, of in named.items() for part in _parts(name, of, stack)]
            try:
                response = self._http.post(f"{self.url}/segment", data=fields, files=files)
            except httpx.TimeoutException as error:
                raise SemisegError(
                    f"The server at {self.url} gave no answer in time ({type(error).__name__})."
                ) from None
            except httpx.ConnectError as error:
                raise SemisegError(f"No server answers at {self.url} ({error}); is `semiseg serve` running?") from None
            except httpx.TransportError as error:
                raise SemisegError(
                    f"The connection to {self.url} broke off ({error}); is the upload larger than the server accepts?"
                ) from None
        if response.status_code != 200:
            raise _refused(self.url, response)
        return _understood(self.url, response)


def _understood(url: str, response: httpx.Response) -> Answer:
    headers = response.headers
    try:
        return Answer(
            body=response.content,
            media_type=headers["content-type"].split(";")[0],
            millilitres=json.loads(headers["x-semiseg-millilitres"]),
            seconds=_stages(headers["server-timing"]),
            model=json.loads(headers["x-semiseg-model"]),
            remarks=tuple((str(code), str(text)) for code, text in json.loads(headers["x-semiseg-remarks"])),
        )
    except (KeyError, ValueError):
        raise SemisegError(f"What answers at {url} is not a semiseg server.") from None


def _stages(header: str) -> dict[str, float]:
    """Seconds per stage of a Server-Timing header."""
    pairs = (part.strip().split(";dur=") for part in header.split(",") if part.strip())
    return {stage: float(milliseconds) / 1000.0 for stage, milliseconds in pairs}


def _refused(url: str, response: httpx.Response) -> SemisegError:
    try:
        sentence = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        sentence = f"What answers there is not a semiseg server (HTTP {response.status_code})."
    kind = InputError if 400 <= response.status_code < 500 else SemisegError
    return kind(f"{url}: {sentence}")


def _parts(name: str, paths: Paths, stack: contextlib.ExitStack) -> list[tuple[str, tuple[str, IO[bytes]]]]:
    """The parts of the form. Names on this machine may tell who the patient is: the server gets numbers instead."""
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    missing = [path for path in given if not path.exists()]
    if missing or not given:
        raise InputError(f"There is no file or folder {missing[0]}." if missing else "There is no file to segment.")
    if any(path.is_dir() for path in given):
        archive = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack is the context
        _zip_into(archive, given)
        streams: list[IO[bytes]] = [archive]
    else:
        streams = [stack.enter_context(path.open("rb")) for path in given]
    return [(name, (f"{number:05d}", stream)) for number, stream in enumerate(streams, start=1)]


def _zip_into(stream: IO[bytes], given: Sequence[Path]) -> None:
    """Pack files and the files in folders, stored without compression, under numbers."""
    files: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files += [p for p in inside if not p.name.startswith(".")]
    if not files:
        raise InputError(f"The folder {given[0]} holds no files.")
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files, start=1):
            # The year that zip begins with: a file older than that could not be packed otherwise.
            info = zipfile.ZipInfo(f"{number:05d}")
            with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(2**20):
                    target.write(chunk)
    stream.seek(0)
