"""Delivery of results to an archive by STOW-RS (PS3.18 10.5), with a confirmation for each instance."""

from __future__ import annotations

import json
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import requests
from pydicom.uid import UID

from semiseg.client import retry_after
from semiseg.errors import Cancelled
from server.gateway import dimse_statuses, http_statuses
from server.gateway.delivery_result import DeliveryResult
from server.gateway.destinations import DicomwebDestination
from server.gateway.dicom_json import first_value
from server.gateway.dicomweb import read_secret, redirect_target, url_origin
from server.gateway.stow_response import StowResponse, parse_stow_response
from server.gateway.transfer_syntaxes import offered_syntaxes, read_header, transcoded

ANSWER_BYTES = 4 * 2**20
BLOCK = 2**20
REDIRECTS = 3
INSTANCE = "00080018"  # SOP Instance UID

_LOG = logging.getLogger("semiseg.gateway")


def send(files: Sequence[Path], to: DicomwebDestination, stopped: Callable[[], bool]) -> DeliveryResult:
    """Send files; a file that the archive refuses does not prevent the delivery of the others.

    Args:
        files: DICOM files.
        to: Archive.
        stopped: Function that returns True once the delivery is to stop; called before each request.

    Raises:
        InputError: The token cannot be read.
        Cancelled: The delivery was stopped.
    """
    with requests.Session() as session:
        return _Sending(session, to, stopped).send(files)


class _Sending:
    def __init__(self, session: requests.Session, to: DicomwebDestination, stopped: Callable[[], bool]) -> None:
        self._session, self._url, self._stopped, self.outcome = session, to.url, stopped, DeliveryResult()
        self._times = (to.connect_seconds, to.answer_seconds)
        session.trust_env = False  # results must not pass through a proxy for the internet
        session.headers["Accept"] = "application/dicom+json, application/dicom+xml;q=0.5"
        if to.token is not None:
            session.headers["Authorization"] = f"Bearer {read_secret(to.token)}"

    def send(self, files: Sequence[Path]) -> DeliveryResult:
        """Send all files in one request, and then singly those that may have been refused because of another file."""
        alone = self._request(files, None)
        for file in alone:
            if self.outcome.trouble:
                break
            self._by_syntax(file)
        return self.outcome

    def _by_syntax(self, file: Path) -> None:
        own = read_header(file).file_meta.TransferSyntaxUID
        for syntax in offered_syntaxes(own):
            if not self._request([file], syntax):
                return

    def _request(self, files: Sequence[Path], syntax: UID | None) -> list[Path]:
        """Send one request; return the files to try again, alone or in another transfer syntax."""
        if self._stopped():
            raise Cancelled("The delivery was stopped.")
        with tempfile.TemporaryFile() as body:
            boundary = secrets.token_hex(16)
            try:
                _write(body, boundary, files, syntax)
            except Exception as error:  # noqa: BLE001 - pydicom's decoders raise many kinds
                self._refuse(
                    files, f"it cannot be converted to {syntax.name if syntax else ''} ({type(error).__name__})"
                )
                return []
            try:
                answer, content = self._posted(body, boundary)
            except (requests.RequestException, ValueError) as error:  # ValueError: the address cannot be parsed
                self.outcome.trouble = f"{self._url} {_why(error)}."
                return []
        return self._understand(files, syntax, answer, content)

    def _posted(self, body: IO[bytes], boundary: str) -> tuple[requests.Response, bytes]:
        """Send the request and return the response and its body; it follows method-preserving redirects on the host."""
        url = f"{self._url}/studies"
        media_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        for _ in range(REDIRECTS + 1):
            body.seek(0)
            with self._session.post(
                url,
                data=body,
                headers={"Content-Type": media_type},
                timeout=self._times,
                allow_redirects=False,
                stream=True,
            ) as answer:
                content = _bounded(answer, self._times[1])
            there = redirect_target(url, answer.headers.get("Location", ""))
            if answer.status_code not in (307, 308) or url_origin(there) != url_origin(url):
                break
            url = there
        return answer, content

    def _understand(
        self, files: Sequence[Path], syntax: UID | None, answer: requests.Response, content: bytes
    ) -> list[Path]:
        code, told = answer.status_code, http_statuses.describe(answer.status_code)
        if http_statuses.is_peer_error(code):
            self.outcome.trouble = f"{self._url} answered {told}."
            self.outcome.retry_after_seconds = retry_after(answer.headers.get("Retry-After")) or 0.0
            return []
        found = parse_stow_response(content, answer.headers.get("Content-Type", ""))
        again: list[Path] = []
        for file in files:
            uid = str(read_header(file).SOPInstanceUID)
            if uid in found.stored:
                self._take(file, found.stored[uid])
            elif uid in found.failed:
                if dimse_statuses.is_already_stored(found.failed[uid]):
                    self._take(file, found.failed[uid])
                    continue
                self._refuse([file], f"it was refused with reason {dimse_statuses.describe(found.failed[uid])}")
                if found.failed[uid] == dimse_statuses.SYNTAX_NOT_SUPPORTED:
                    again.append(file)
            elif _says_all_is_stored(code, found, content) or ((200 <= code < 300 or code == 409) and self._has(file)):
                self._take(file, 0)
            elif 200 <= code < 300 and not found.known and content.strip():
                self.outcome.trouble = (
                    f"{self._url} answered HTTP {code} with content that is not a STOW-RS response; check that `url` "
                    "is the DICOMweb root, and that it is not a login page"
                )
                return []
            else:
                missing = "" if code >= 400 else ", without mentioning the instance"
                self._refuse([file], f"it answered {told}{missing}")
                if len(files) > 1 or code == 415:
                    again.append(file)
        return again

    def _has(self, file: Path) -> bool:
        """Return True if the archive lists the instance by QIDO-RS (PS3.18 10.6)."""
        header = read_header(file)
        where = f"{self._url}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}/instances"
        try:
            with self._session.get(
                where,
                params={"SOPInstanceUID": str(header.SOPInstanceUID)},
                timeout=self._times,
                allow_redirects=False,
                stream=True,
            ) as answer:
                listed: Any = json.loads(_bounded(answer, self._times[1])) if answer.status_code == 200 else []
        except (requests.RequestException, ValueError):
            return False
        return isinstance(listed, list) and any(first_value(one, INSTANCE) == header.SOPInstanceUID for one in listed)

    def _take(self, file: Path, reason: int) -> None:
        kind = UID(read_header(file).SOPClassUID).name
        told = f"a {kind} was stored with reason {dimse_statuses.describe(reason)}" if reason else ""
        self.outcome.add_confirmed(file, told)
        if told:
            _LOG.warning("%s: %s", self._url, told)

    def _refuse(self, files: Sequence[Path], why: str) -> None:
        for file in files:
            self.outcome.add_refused(
                file, f"{self._url} did not store a {UID(read_header(file).SOPClassUID).name}: {why}."
            )


def _says_all_is_stored(code: int, found: StowResponse, content: bytes) -> bool:
    """Return True if a response without items means that all instances were stored (PS3.18 table 10.5.3-1: 200)."""
    return code in (200, 201, 204) and not found.failed and not found.stored and (found.empty or not content.strip())


def _write(body: IO[bytes], boundary: str, files: Sequence[Path], syntax: UID | None) -> None:
    for file in files:
        own = read_header(file).file_meta.TransferSyntaxUID
        body.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        with transcoded(file, syntax or own) as converted, converted.open("rb") as stream:
            while block := stream.read(BLOCK):
                body.write(block)
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())


def _bounded(answer: requests.Response, seconds: float) -> bytes:
    """Read the body, up to a maximum size, and for at most ``seconds`` after the headers."""
    until, content = time.monotonic() + seconds, b""
    for block in answer.iter_content(64 * 1024):
        content += block
        if len(content) > ANSWER_BYTES or time.monotonic() > until:
            break
    return content


def _why(error: Exception) -> str:
    """Describe why a request had no response, without the exception's text, which contains the address."""
    if isinstance(error, requests.exceptions.SSLError):
        return "has no trusted certificate, or does not use TLS; check `url`, the certificate and its authority"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "does not answer: the connection timed out"
    if isinstance(error, requests.exceptions.ReadTimeout):
        return "accepted the connection but did not answer in time"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "does not answer, or closed the connection"
    return f"gave no readable response ({type(error).__name__})"
