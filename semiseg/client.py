"""A client that uploads scans to a semiseg server and receives their segmentations. It needs httpx and no engine."""

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
from typing import TYPE_CHECKING, Any, TypeVar

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
from semiseg.deprecation import renamed_arguments, renamed_attributes
from semiseg.errors import InputError, SemisegError
from semiseg.outputs.formats import RESULTS_MEDIA_TYPE
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

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(
        __name__,
        Answer="SegmentationResult",
        Busy="ServerBusyError",
        Failed="ServerFailureError",
        Forms="MultiFormatResult",
        Job="JobStatus",
        NoAnswer="ServerUnreachableError",
        Refused="RequestRejectedError",
        Wishes="ReadOptions",
    )

Files = Paths | Mapping[str, Paths]
_CONNECT_SECONDS = 10.0
_Found = TypeVar("_Found")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class JobStatus:
    """Status of a job: a scan that a server with `--state` has accepted.

    Attributes:
        id: Identifier of the job on the server.
        state: State of the job: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        ahead: Number of jobs that start before this one.
        windows_done, windows_total: Numbers of sliding windows; 0 before the network runs.
        seconds_left: Estimated seconds for the remaining windows; None if unknown.
        error: Reason why the job failed.
        status: HTTP status that corresponds to the error.
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
        """True if the state is final: done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")


class Client:
    """HTTP client of the server at ``url``; a context manager that closes its connections.

    Examples:
        >>> import semiseg
        >>> with semiseg.Client(URL) as client:
        ...     report = client.segment("SCAN.nii.gz", "json")
        >>> [segment["name"] for segment in report["segments"]]
        ['liver', 'spleen', 'kidneys']
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 3600.0, patience: float = 120.0) -> None:
        """Configure the client; no connection is opened.

        Args:
            url: Address of the server, such as ``http://127.0.0.1:3000``.
            key: API key, if the server requires one.
            timeout: Seconds to wait for one response.
            patience: Seconds for which requests about jobs are retried while the server is busy or does not respond,
                for example during a restart.

        Raises:
            InputError: The URL is not an http or https address.
        """
        self.url = url.rstrip("/")
        self._patience = patience
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url!r} is not the address of a server ({error}).") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise InputError(f"{url!r} is not the address of a server; write it like http://127.0.0.1:3000.")
        # trust_env: scans must not pass through a proxy that the environment sets for the internet.
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=False,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            follow_redirects=False,  # scans and keys go only to the server that the user named
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
        """Return True if the server responds and its models are warmed up; False if not, or if nothing responds."""
        try:
            return self._http.get(f"{self.url}/readyz", timeout=_CONNECT_SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def lives(self, seconds: float = _CONNECT_SECONDS) -> bool:
        """Return True if anything responds at the address within ``seconds``, with any status."""
        try:
            self._http.get(f"{self.url}/livez", timeout=seconds)
        except httpx.TransportError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models: identity, channels, segments and card of each."""
        found: list[dict[str, Any]] = self._request("GET", "/models").json()
        return found

    def keeps_jobs(self) -> bool:
        """Return True if the server accepts jobs, so that :meth:`submit` can be used."""
        return "/jobs" in self._request("GET", "/docs.json").json().get("paths", {})

    @renamed_arguments(wishes="options")
    def segment(
        self,
        paths: Files,
        answer: str | None = None,
        *,
        options: ReadOptions | None = None,
        model: str | None = None,
        full: bool = False,
    ) -> bytes | dict[str, Any]:
        """Segment one scan; return JSON as a dict, other formats as the bytes of the file. See :meth:`ask`."""
        reply = self.ask(paths, answer, options=options, model=model, full=full)
        if reply.media_type == "application/json":
            document: dict[str, Any] = json.loads(reply.body)
            return document
        return reply.body

    @renamed_arguments(wishes="options")
    def ask(
        self,
        paths: Files,
        answer: str | None = None,
        *,
        options: ReadOptions | None = None,
        model: str | None = None,
        full: bool = False,
    ) -> SegmentationResult:
        """Segment one scan in one request, which stays open until the result is there.

        Args:
            paths: A NIfTI file or another volume (the data files of a header are sent with it), a zip, a folder of
                DICOM files (sent as one zip without names), or DICOM files; or a mapping of channel names to these.
            answer: Output format; with None the server chooses it by the type of the scan.
            options: Selection of the series, and strictness.
            model: Name of the model, if the server has several.
            full: If True, run all windows, also if the model has a coarse pass.

        Raises:
            InputError: A file does not exist, or the server rejected the scan (HTTP 4xx); the message is the server's.
            SemisegError: Nothing responds at the address, the server failed (5xx), or it is not a semiseg server.
        """
        # With this media type the body contains the report, because headers have a limited size. A server of version
        # 0.1 does not know the media type.
        fields = _fields(answer, options, model, full=full)
        response = self._post("/segment", paths, fields, {"Accept": RESULTS_MEDIA_TYPE})
        return parse_result(self.url, response)

    def ask_forms(self, paths: Files, forms: Sequence[str], *, model: str | None = None) -> MultiFormatResult:
        """Segment one scan once and return the result in several output formats; otherwise as :meth:`ask`."""
        fields = _fields(None, None, model) | {"answer": ",".join(forms)}
        return parse_multi_format_result(
            self.url, self._post("/segment", paths, fields, {"Accept": RESULTS_MEDIA_TYPE}), forms
        )

    @renamed_arguments(wishes="options")
    def submit(
        self,
        paths: Files,
        answer: str | None = None,
        *,
        options: ReadOptions | None = None,
        model: str | None = None,
        full: bool = False,
    ) -> JobStatus:
        """Submit a scan as a job and return without waiting for the result; for the arguments see :meth:`ask`.

        If the connection is lost or the server is busy, the upload is retried for a while. An idempotency key ensures
        that retries do not create further jobs.

        Raises:
            InputError, SemisegError: See :meth:`ask`.
        """
        fields, same = _fields(answer, options, model, full=full), {"Idempotency-Key": secrets.token_hex(16)}
        return self._retry(lambda: _job(self.url, self._post("/jobs", paths, fields, same)))

    def job(self, name: str) -> JobStatus:
        """Return the present status of a job; the request is retried for a while if the server does not respond.

        Raises:
            InputError: The server does not know the job, or no longer keeps it.
            SemisegError: The server does not respond.
        """
        return self._retry(lambda: _job(self.url, self._request("GET", _path(name))))

    @renamed_arguments(told="on_update")
    def wait(
        self, name: str, on_update: Callable[[JobStatus], None] = lambda _: None, *, every: float = 0.5
    ) -> JobStatus:
        """Poll a job until it ends, and return its last status.

        Args:
            name: Identifier of the job.
            on_update: Called with each status.
            every: Seconds between requests.
        """
        while True:
            job = self.job(name)
            on_update(job)
            if job.ended:
                return job
            time.sleep(every)

    def result(self, name: str, answer: str | None = None) -> SegmentationResult:
        """Return the result of a job that is done.

        Args:
            name: Identifier of the job.
            answer: Output format, if another one than the job was submitted with; possible only for jobs with the
                output format ``viewer-bundle``.

        Raises:
            InputError: The job failed, was cancelled, is not done yet, or does not have this format.
            SemisegError: See :meth:`ask`.
        """
        path = _path(name, "/result") + (f"?answer={answer}" if answer else "")
        return self._retry(lambda: self._result(name, path))

    def stop(self, name: str) -> JobStatus:
        """Cancel a job; a job that has ended is not changed."""
        return self._retry(lambda: _job(self.url, self._request("DELETE", _path(name, "?only=stop"))))

    def forget(self, name: str) -> JobStatus:
        """Delete a job that has ended together with its result, or cancel one that has not ended."""
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
        """Send a request and return the response if its status is a success."""
        try:
            response = self._http.request(method, self.url + path, **options)
        except httpx.TimeoutException as error:
            raise ServerUnreachableError(
                f"The server at {self.url} did not respond in time ({type(error).__name__})."
            ) from None
        except httpx.ConnectError as error:
            raise ServerUnreachableError(
                f"No server answers at {self.url} ({error}); is `semiseg serve` running?"
            ) from None
        except httpx.TransportError as error:
            # The text of a protocol error quotes what the other side sent, so only its type is shown.
            told = type(error).__name__ if isinstance(error, httpx.ProtocolError) else error
            raise ServerUnreachableError(
                f"The connection to {self.url} was lost ({told}); is the upload larger than the server accepts?"
            ) from None
        if not response.is_success:
            raise error_from_response(self.url, response)
        if where := response.headers.get("location"):
            self._require_here(response.url.join(where))
        return response

    def _require_here(self, address: httpx.URL) -> None:
        """Refuse an address on another server: the scan and the key were given for this server only."""
        here = httpx.URL(self.url)
        if (address.scheme, address.host, address.port) != (here.scheme, here.host, here.port):
            raise SemisegError(
                f"{self.url} refers to {address.scheme}://{address.netloc.decode('ascii', 'replace')} for the next "
                "request. That is another server, so semiseg does not follow the reference. A reverse proxy has to "
                "keep the header Host or send X-Forwarded-Host."
            )

    def _retry(self, attempt: Callable[[], _Found]) -> _Found:
        """Return the result of ``attempt``; retry with pauses while the server does not respond or is busy."""
        until = None  # counted from the first failure, because an upload alone may take long
        while True:
            try:
                return attempt()
            except (ServerUnreachableError, ServerBusyError) as error:
                until = until or time.monotonic() + self._patience
                pause = error.seconds
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)


def _fields(
    answer: str | None, options: ReadOptions | None, model: str | None, *, full: bool = False
) -> dict[str, str]:
    options = options or ReadOptions()
    asked = {"model": model, "answer": answer, "series": options.series}
    fields = {name: value for name, value in asked.items() if value}
    flags = {"strict": options.strict, "aligned": options.aligned, "full": full}
    return fields | {name: "true" for name, value in flags.items() if value}


def _job(url: str, response: httpx.Response) -> JobStatus:
    try:
        told = response.json()
        return JobStatus(**{field.name: told[field.name] for field in dataclasses.fields(JobStatus)})
    except (KeyError, TypeError, ValueError):
        raise foreign_server_error(url) from None


def _path(job: str, rest: str = "") -> str:
    """Return the URL path of a job, after a check of the identifier, which may come from a server."""
    if not _JOB_ID.fullmatch(job):
        raise InputError("The name of a job consists of letters, digits, _ and - only.")
    return f"/jobs/{job}{rest}"
