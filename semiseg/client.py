"""A client of a semiseg server: a scan goes up, its segmentation comes down. Needs httpx and no engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx

from semiseg.client_errors import (
    RequestRejectedError,
    ServerBusyError,
    ServerFailureError,
    ServerUnreachableError,
    error_from_response,
    retry_after,
)
from semiseg.client_results import (
    MultiFormatResult,
    SegmentationResult,
    foreign_server_error,
    has_truncated_headers,
    parse_multi_format_result,
    parse_result,
)
from semiseg.errors import InputError, SemisegError
from semiseg.outputs.formats import RESULTS_MEDIA_TYPE, OutputFormat
from semiseg.upload_parts import multipart_files
from semiseg.volumes.read_options import Paths, ReadOptions

__all__ = [
    "Client",
    "JobStatus",
    "MultiFormatResult",
    "RequestRejectedError",
    "SegmentationResult",
    "ServerBusyError",
    "ServerFailureError",
    "ServerUnreachableError",
    "retry_after",
]

Files = Paths | Mapping[str, Paths]
_CONNECT_SECONDS = 10.0
_Found = TypeVar("_Found")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class JobStatus:
    """A scan that a server with `--state` has accepted.

    Attributes:
        id: its name there.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        ahead: jobs that are begun before it.
        windows_done, windows_total: of the sliding window; 0 before it begins.
        seconds_left: for the rest of them; None when it cannot be told.
        error: why it failed.
        status: the HTTP status of that reason.
    """

    id: str
    state: str
    ahead: int = 0
    windows_done: int = 0
    windows_total: int = 0
    seconds_left: float | None = None
    error: str | None = None
    status: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")


class Client:
    """Talks to the server at ``url``; a context manager that closes its connections."""

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 3600.0, patience: float = 120.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: such as ``http://127.0.0.1:3000``.
            key: an API key, where the server asks for one.
            timeout: seconds to wait for one answer.
            patience: seconds for which a job is asked for again while nobody answers, as when the server is started
                anew.

        Raises:
            InputError: not an http or https address.
        """
        self.url = url.rstrip("/")
        self._patience = patience
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url!r} is no address of a server ({error}).") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise InputError(f"{url!r} is no address of a server; write it like http://127.0.0.1:3000.")
        # trust_env: a proxy set for the internet must not see scans that stay in the house.
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=False,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            follow_redirects=False,  # a scan and a key are for the server that was named
        )

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

    def lives(self, seconds: float = _CONNECT_SECONDS) -> bool:
        """Whether anything answers there within ``seconds``, whatever its answer is."""
        try:
            self._http.get(f"{self.url}/livez", timeout=seconds)
        except httpx.TransportError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """The server's models: identity, channels, segments and card of each."""
        found: list[dict[str, Any]] = self._request("GET", "/models").json()
        return found

    def keeps_jobs(self) -> bool:
        """Whether the server takes jobs, so that :meth:`submit` can be used."""
        return "/jobs" in self._request("GET", "/docs.json").json().get("paths", {})

    def segment(
        self,
        paths: Files,
        answer: OutputFormat | None = None,
        *,
        options: ReadOptions | None = None,
        model: str | None = None,
    ) -> bytes | dict[str, Any]:
        """Segment one scan; JSON comes as a dict, the other forms as the bytes of their file. See :meth:`ask`."""
        reply = self.ask(paths, answer, options=options, model=model)
        if reply.media_type == "application/json":
            document: dict[str, Any] = json.loads(reply.body)
            return document
        return reply.body

    def ask(
        self,
        paths: Files,
        answer: OutputFormat | None = None,
        *,
        options: ReadOptions | None = None,
        model: str | None = None,
    ) -> SegmentationResult:
        """Segment one scan while the connection is held.

        Args:
            paths: a NIfTI file or another volume (a header takes its data files along), a zip, a folder of DICOM
                files (sent as one zip without names), or DICOM files; or such for each channel, by its name.
            answer: the form of the answer; None lets the server choose by the scan.
            options: which series to take, and what to refuse or to trust.
            model: which of the server's models, where it has several.

        Raises:
            InputError: there is no such file, or the server refused the scan (HTTP 4xx); the sentence is the server's.
            SemisegError: nobody answers at the address, the server failed (5xx), or what answers is no semiseg server.
        """
        # The report comes in the body: headers are bounded. A server of version 0.1 does not know this media type.
        response = self._post("/segment", paths, _fields(answer, options, model), {"Accept": RESULTS_MEDIA_TYPE})
        return parse_result(self.url, response)

    def ask_forms(self, paths: Files, forms: Sequence[OutputFormat], *, model: str | None = None) -> MultiFormatResult:
        """Segment one scan once, and have the answer in several forms; otherwise as :meth:`ask`."""
        fields = _fields(None, None, model) | {"answer": ",".join(forms)}
        return parse_multi_format_result(
            self.url, self._post("/segment", paths, fields, {"Accept": RESULTS_MEDIA_TYPE}), forms
        )

    def submit(
        self,
        paths: Files,
        answer: OutputFormat | None = None,
        *,
        options: ReadOptions | None = None,
        model: str | None = None,
    ) -> JobStatus:
        """Let a scan be segmented, and go on; arguments as of :meth:`ask`.

        The upload is sent again for a while when the connection breaks off or the server is busy; it stays one job.

        Raises:
            InputError, SemisegError: as :meth:`ask`.
        """
        fields, same = _fields(answer, options, model), {"Idempotency-Key": secrets.token_hex(16)}
        return self._retry(lambda: _job(self.url, self._post("/jobs", paths, fields, same)))

    def job(self, name: str) -> JobStatus:
        """The job as it is now; asked again for a while when nobody answers.

        Raises:
            InputError: the server knows no such job (any more).
            SemisegError: nobody answers.
        """
        return self._retry(lambda: _job(self.url, self._request("GET", _path(name))))

    def wait(
        self, name: str, on_update: Callable[[JobStatus], None] = lambda _: None, *, every: float = 0.5
    ) -> JobStatus:
        """Ask for a job ``every`` so many seconds until it ends, tell each answer, and return the last."""
        while True:
            job = self.job(name)
            on_update(job)
            if job.ended:
                return job
            time.sleep(every)

    def result(self, name: str, answer: OutputFormat | None = None) -> SegmentationResult:
        """The segmentation of a job that is done.

        Args:
            name: of the job.
            answer: another form than it was sent with; only where that was ``case``.

        Raises:
            InputError: it failed, or was cancelled, or is not done yet, or does not have this form.
            SemisegError: as :meth:`ask`.
        """
        path = _path(name, "/result") + (f"?answer={answer}" if answer else "")
        return self._retry(lambda: self._result(name, path))

    def stop(self, name: str) -> JobStatus:
        """Stop a job; one that has ended stays as it is."""
        return self._retry(lambda: _job(self.url, self._request("DELETE", _path(name, "?only=stop"))))

    def forget(self, name: str) -> JobStatus:
        """Delete a job that has ended, with its result; stop one that has not."""
        return _job(self.url, self._request("DELETE", _path(name)))

    def _result(self, name: str, path: str) -> SegmentationResult:
        response = self._request("GET", path)
        answer = parse_result(self.url, response)
        if not has_truncated_headers(response):
            return answer
        told = self._request("GET", _path(name)).json()
        try:
            remarks = tuple((str(one["code"]), str(one["text"])) for one in told["remarks"])
            return dataclasses.replace(answer, millilitres=told["millilitres"], remarks=remarks)
        except (KeyError, TypeError, ValueError):
            raise foreign_server_error(self.url) from None

    def _post(
        self, path: str, paths: Files, fields: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        named = {f"channel:{name}": of for name, of in paths.items()} if isinstance(paths, Mapping) else {"scan": paths}
        with contextlib.ExitStack() as stack:
            files = [part for name, of in named.items() for part in multipart_files(name, of, stack)]
            return self._request("POST", path, data=fields, files=files, headers=headers)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The response, when it is a success."""
        try:
            response = self._http.request(method, self.url + path, **options)
        except httpx.TimeoutException as error:
            raise ServerUnreachableError(
                f"The server at {self.url} gave no answer in time ({type(error).__name__})."
            ) from None
        except httpx.ConnectError as error:
            raise ServerUnreachableError(
                f"No server answers at {self.url} ({error}); is `semiseg serve` running?"
            ) from None
        except httpx.TransportError as error:
            # A protocol error quotes what the other side sent.
            told = type(error).__name__ if isinstance(error, httpx.ProtocolError) else error
            raise ServerUnreachableError(
                f"The connection to {self.url} broke off ({told}); is the upload larger than the server accepts?"
            ) from None
        if not response.is_success:
            raise error_from_response(self.url, response)
        if where := response.headers.get("location"):
            self._require_here(response.url.join(where))
        return response

    def _require_here(self, address: httpx.URL) -> None:
        """Refuse an address that a server names and that lies elsewhere: a key and a scan were meant for this one."""
        here = httpx.URL(self.url)
        if (address.scheme, address.host, address.port) != (here.scheme, here.host, here.port):
            raise SemisegError(
                f"{self.url} names {address.scheme}://{address.netloc.decode('ascii', 'replace')} for what comes next, "
                "which is another server; semiseg does not follow it. A proxy in front has to keep Host or send "
                "X-Forwarded-Host."
            )

    def _retry(self, attempt: Callable[[], _Found]) -> _Found:
        """What ``attempt`` finds; again after a while as long as nobody answers, or the server has no room."""
        until = None  # counted from the first failure: an upload alone may take long
        while True:
            try:
                return attempt()
            except (ServerUnreachableError, ServerBusyError) as error:
                until = until or time.monotonic() + self._patience
                pause = error.seconds
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)


def _fields(answer: OutputFormat | None, options: ReadOptions | None, model: str | None) -> dict[str, str]:
    options = options or ReadOptions()
    asked = {"model": model, "answer": answer, "series": options.series}
    fields = {name: value for name, value in asked.items() if value}
    return fields | {name: "true" for name in ("strict", "aligned") if getattr(options, name)}


def _job(url: str, response: httpx.Response) -> JobStatus:
    try:
        told = response.json()
        return JobStatus(**{field.name: told[field.name] for field in dataclasses.fields(JobStatus)})
    except (KeyError, TypeError, ValueError):
        raise foreign_server_error(url) from None


def _path(job: str, rest: str = "") -> str:
    """The path of a job, whose name a server made up."""
    if not _JOB_ID.fullmatch(job):
        raise InputError("The name of a job has letters, digits, _ and - only.")
    return f"/jobs/{job}{rest}"
