"""A client of a semiseg server: a scan goes up, its segmentation comes down. Needs httpx and no engine."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import io
import json
import secrets
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx

from semiseg.errors import InputError, SemisegError
from semiseg.outputs.kind import Kind
from semiseg.upload_parts import form_parts
from semiseg.volumes.wishes import Paths, Wishes

Files = Paths | Mapping[str, Paths]
_CONNECT_SECONDS = 10.0
_Found = TypeVar("_Found")


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


@dataclass(frozen=True)
class Forms:
    """An answer in several forms.

    Attributes:
        files: of each form, in the order in which they were asked for; several only of ``overlay``.
        model, millilitres, remarks: as of :class:`Answer`.
    """

    files: dict[str, tuple[bytes, ...]]
    model: dict[str, Any]
    millilitres: dict[str, float]
    remarks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
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
        found: list[dict[str, Any]] = self._asked("GET", "/models").json()
        return found

    def keeps_jobs(self) -> bool:
        """Whether the server takes jobs, so that :meth:`submit` can be used."""
        return "/jobs" in self._asked("GET", "/docs.json").json().get("paths", {})

    def segment(
        self, paths: Files, answer: Kind | None = None, *, wishes: Wishes | None = None, model: str | None = None
    ) -> bytes | dict[str, Any]:
        """Segment one scan; JSON comes as a dict, the other forms as the bytes of their file. See :meth:`ask`."""
        reply = self.ask(paths, answer, wishes=wishes, model=model)
        if reply.media_type == "application/json":
            document: dict[str, Any] = json.loads(reply.body)
            return document
        return reply.body

    def ask(
        self, paths: Files, answer: Kind | None = None, *, wishes: Wishes | None = None, model: str | None = None
    ) -> Answer:
        """Segment one scan while the connection is held.

        Args:
            paths: a NIfTI file or another volume (a header takes its data files along), a zip, a folder of DICOM
                files (sent as one zip without names), or DICOM files; or such for each channel, by its name.
            answer: the form of the answer; None lets the server choose by the scan.
            wishes: which series to take, and what to refuse or to trust.
            model: which of the server's models, where it has several.

        Raises:
            InputError: there is no such file, or the server refused the scan (HTTP 4xx); the sentence is the server's.
            SemisegError: nobody answers at the address, the server failed (5xx), or what answers is no semiseg server.
        """
        return _understood(self.url, self._posted("/segment", paths, _fields(answer, wishes, model)))

    def ask_forms(self, paths: Files, forms: Sequence[Kind], *, model: str | None = None) -> Forms:
        """Segment one scan once, and have the answer in several forms; otherwise as :meth:`ask`."""
        fields = _fields(None, None, model) | {"answer": ",".join(forms)}
        reply = _understood(self.url, self._posted("/segment", paths, fields))
        files: dict[str, tuple[bytes, ...]] = {}
        try:
            if len(forms) == 1:
                whole: dict[str, bytes] = {forms[0]: reply.body}
            else:
                with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
                    whole = {name.partition("/")[0]: archive.read(name) for name in archive.namelist()}
            for form in forms:
                files[form] = _members(whole[form]) if form == "overlay" else (whole[form],)
        except (KeyError, zipfile.BadZipFile):
            raise SemisegError(f"What answers at {self.url} is not a semiseg server.") from None
        return Forms(files, reply.model, reply.millilitres, reply.remarks)

    def submit(
        self, paths: Files, answer: Kind | None = None, *, wishes: Wishes | None = None, model: str | None = None
    ) -> Job:
        """Let a scan be segmented, and go on; arguments as of :meth:`ask`.

        The upload is sent again for a while when the connection breaks off or the server is busy; it stays one job.

        Raises:
            InputError, SemisegError: as :meth:`ask`.
        """
        fields, same = _fields(answer, wishes, model), {"Idempotency-Key": secrets.token_hex(16)}
        return self._patiently(lambda: _job(self.url, self._posted("/jobs", paths, fields, same)))

    def job(self, name: str) -> Job:
        """The job as it is now; asked again for a while when nobody answers.

        Raises:
            InputError: the server knows no such job (any more).
            SemisegError: nobody answers.
        """
        return self._patiently(lambda: _job(self.url, self._asked("GET", f"/jobs/{name}")))

    def wait(self, name: str, told: Callable[[Job], None] = lambda _: None, *, every: float = 0.5) -> Job:
        """Ask for a job ``every`` so many seconds until it ends, tell each answer, and return the last."""
        while True:
            job = self.job(name)
            told(job)
            if job.ended:
                return job
            time.sleep(every)

    def result(self, name: str, answer: Kind | None = None) -> Answer:
        """The segmentation of a job that is done.

        Args:
            name: of the job.
            answer: another form than it was sent with; only where that was ``case``.

        Raises:
            InputError: it failed, or was cancelled, or is not done yet, or does not have this form.
            SemisegError: as :meth:`ask`.
        """
        path = f"/jobs/{name}/result" + (f"?answer={answer}" if answer else "")
        return self._patiently(lambda: _understood(self.url, self._asked("GET", path)))

    def stop(self, name: str) -> Job:
        """Stop a job; one that has ended stays as it is."""
        return self._patiently(lambda: _job(self.url, self._asked("DELETE", f"/jobs/{name}?only=stop")))

    def forget(self, name: str) -> Job:
        """Delete a job that has ended, with its result; stop one that has not."""
        return _job(self.url, self._asked("DELETE", f"/jobs/{name}"))

    def _posted(
        self, path: str, paths: Files, fields: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        named = {f"channel:{name}": of for name, of in paths.items()} if isinstance(paths, Mapping) else {"scan": paths}
        with contextlib.ExitStack() as stack:
            files = [part for name, of in named.items() for part in form_parts(name, of, stack)]
            return self._asked("POST", path, data=fields, files=files, headers=headers)

    def _asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The response, when it is a success."""
        try:
            response = self._http.request(method, self.url + path, **options)
        except httpx.TimeoutException as error:
            raise NoAnswer(f"The server at {self.url} gave no answer in time ({type(error).__name__}).") from None
        except httpx.ConnectError as error:
            raise NoAnswer(f"No server answers at {self.url} ({error}); is `semiseg serve` running?") from None
        except httpx.TransportError as error:
            # A protocol error quotes what the other side sent.
            told = type(error).__name__ if isinstance(error, httpx.ProtocolError) else error
            raise NoAnswer(
                f"The connection to {self.url} broke off ({told}); is the upload larger than the server accepts?"
            ) from None
        if not response.is_success:
            raise _refused(self.url, response)
        return response

    def _patiently(self, attempt: Callable[[], _Found]) -> _Found:
        """What ``attempt`` finds; again after a while as long as nobody answers, or the server has no room."""
        until = None  # counted from the first failure: an upload alone may take long
        while True:
            try:
                return attempt()
            except (NoAnswer, Busy) as error:
                until = until or time.monotonic() + self._patience
                pause = error.seconds
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)


class NoAnswer(SemisegError):  # noqa: N818 - it may come yet
    """Nobody answered; the same question may be answered later."""

    seconds = 1.0


class Busy(SemisegError):  # noqa: N818 - it passes
    """The server has no room at present; it said after how many ``seconds`` to ask again, with the HTTP ``status``."""

    def __init__(self, sentence: str, seconds: float, status: int = 503) -> None:
        super().__init__(sentence)
        self.seconds, self.status = seconds, status


class Refused(InputError):  # noqa: N818 - as above
    """HTTP 4xx.

    Attributes:
        status: The HTTP status.
        own_words: Whether the sentence is a semiseg server's own, in its JSON form, and not made up here for an answer
            of a proxy or another program.
    """

    def __init__(self, sentence: str, status: int, *, own_words: bool) -> None:
        super().__init__(sentence)
        self.status, self.own_words = status, own_words


class Failed(SemisegError):  # noqa: N818 - as above
    """Another HTTP ``status`` that is no success: 3xx or 5xx."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def _fields(answer: Kind | None, wishes: Wishes | None, model: str | None) -> dict[str, str]:
    wishes = wishes or Wishes()
    asked = {"model": model, "answer": answer, "series": wishes.series}
    fields = {name: value for name, value in asked.items() if value}
    return fields | {name: "true" for name in ("strict", "aligned") if getattr(wishes, name)}


def _members(body: bytes) -> tuple[bytes, ...]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return tuple(archive.read(name) for name in archive.namelist())


def _job(url: str, response: httpx.Response) -> Job:
    try:
        told = response.json()
        return Job(**{field.name: told[field.name] for field in dataclasses.fields(Job)})
    except (KeyError, TypeError, ValueError):
        raise SemisegError(f"What answers at {url} is not a semiseg server.") from None


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


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 10.2.3), which may be a date; None where there is none or no sense."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


def _refused(url: str, response: httpx.Response) -> SemisegError:
    status, own_words = response.status_code, False
    sentence = f"{url}: What answers there is not a semiseg server (HTTP {status})."
    try:
        told = response.json()["error"]
        own_words = isinstance(told, str) and bool(told.strip())
    except (ValueError, KeyError, TypeError):
        pass
    if own_words:
        sentence = f"{url}: {told}"
    if status in (429, 502, 503, 507):  # 502 and a bare 503 are a proxy's, while the server starts anew
        seconds = retry_after(response.headers.get("retry-after"))
        return Busy(sentence, 1.0 if seconds is None else seconds, status)
    if 400 <= status < 500:
        return Refused(sentence, status, own_words=own_words)
    return Failed(sentence, status)
