"""A study's scans to a server, and what it makes of them to the disk; each order once, by whichever server answers."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.client import (
    Client,
    MultiFormatResult,
    RequestRejectedError,
    ServerBusyError,
    ServerFailureError,
    ServerUnreachableError,
)
from semiseg.errors import Cancelled, InputError, SemisegError
from semiseg.system.durable_files import replace_file
from server.gateway import http_statuses
from server.gateway.config import OutputFormat, Servers
from server.gateway.dicomweb import read_secret
from server.gateway.server_pool import ServerPool

PROBE_SECONDS = 10.0  # for the answer to a small question
POLL_INTERVAL = 0.2
SCAN_ERRORS = frozenset({400, 415, 422})  # with the server's own sentence
POSSIBLE_SCAN_ERRORS = frozenset({408, 413, 500})  # the server is well, and cannot have this scan at present

_LOG = logging.getLogger("semiseg.gateway")


class ServersUnavailable(SemisegError):  # noqa: N818 - it passes
    """No server could do it at present.

    Attributes:
        seconds: Seconds that one of them asks to wait; 0 where none says.
        of_servers: True if the servers are the reason, so that other scans fail as well; False if it may be the scan.
    """

    def __init__(self, sentence: str, seconds: float = 0.0, *, of_servers: bool = False) -> None:
        super().__init__(sentence)
        self.seconds, self.of_servers = seconds, of_servers


class _ServerError(SemisegError):
    """One server could not do it.

    Attributes:
        rest: True if the server is asked last for a while.
        seconds: Seconds for which it asked that; None where it did not.
        of_server: True if other scans would fail there as well.
    """

    def __init__(self, sentence: str, *, rest: bool, seconds: float | None = None, of_server: bool = True) -> None:
        super().__init__(sentence)
        self.rest, self.seconds, self.of_server = rest, seconds, of_server


@dataclass(frozen=True)
class _Request:
    """A scan and what is asked for it, of whichever server.

    Attributes:
        key: API key; None where the servers need none.
        files: DICOM files of the scan.
        forms: Output formats.
        model: Name of the server's model; None where it has only one.
        stopped: Function that returns True once the job is stopped.
    """

    key: str | None
    files: Sequence[Path]
    forms: Sequence[OutputFormat]
    model: str | None
    stopped: Callable[[], bool]


@dataclass(frozen=True)
class SegmentedScan:
    """What a server made of a scan.

    Attributes:
        files: Names of the files of each output format.
        server: Address of the server.
        metadata: The model, the volumes and the remarks, as the server told them.
    """

    files: dict[str, list[str]]
    server: str
    metadata: dict[str, Any]


class InferenceClient:
    """Asks the servers."""

    def __init__(self, servers: Servers, pool: ServerPool) -> None:
        """Ask ``pool``; the API key is read from its file for each scan.

        Raises:
            InputError: the key cannot be read.
        """
        self._servers, self._pool = servers, pool
        self._key()

    def segment(
        self,
        files: Sequence[Path],
        forms: Sequence[OutputFormat],
        model: str | None,
        folder: Path,
        stopped: Callable[[], bool],
    ) -> SegmentedScan:
        """Have a scan segmented, and write each form into ``folder``.

        Args:
            files: DICOM files of the scan.
            forms: Output formats.
            model: Name of the server's model; None where it has only one.
            folder: Folder of the results; it exists.
            stopped: Function that returns True once the job is stopped; asked now and then.

        Raises:
            InputError: a server will not have this scan; again would not help.
            ServersUnavailable: nobody answered, or nobody has room or the model, or each server failed on it.
            Cancelled: it was stopped.
        """
        try:
            request = _Request(self._key(), files, forms, model, stopped)
        except InputError as error:
            raise ServersUnavailable(str(error), of_servers=True) from None
        asked: dict[str, _ServerError] = {}
        while True:
            with self._pool.acquire(list(asked), stopped) as url:
                if url is None:
                    raise self._not_now(asked)
                try:
                    answer = self._ask(url, request)
                except _ServerError as error:
                    asked[url] = error
                    _LOG.warning("%s", error)
                    if error.rest:
                        self._pool.mark_unavailable(url, str(error), error.seconds)
                else:
                    self._pool.mark_available(url)
                    break
            if stopped():
                raise Cancelled("It was stopped between two servers.")
        told = {"model": answer.model, "millilitres": answer.millilitres, "remarks": answer.remarks}
        return SegmentedScan(_kept(answer.files, folder), url, told)

    def _key(self) -> str | None:
        return read_secret(self._servers.key) if self._servers.key else None

    def _not_now(self, asked: Mapping[str, _ServerError]) -> ServersUnavailable:
        others = {url: why for url, why in self._pool.troubles().items() if url not in asked and why}
        why = [*(str(error) for error in asked.values()), *others.values()]
        waits = [error.seconds for error in asked.values() if error.seconds]
        sentence = " ".join(["No server could segment it.", *(one.rstrip(".") + "." for one in dict.fromkeys(why))])
        of_servers = all(error.of_server for error in asked.values())
        return ServersUnavailable(sentence, min(waits, default=0.0), of_servers=of_servers)

    def _ask(self, url: str, request: _Request) -> MultiFormatResult:
        """What the server makes of the scan.

        Raises:
            InputError: The server will not have the scan, in its own words.
            _ServerError: Anything else.
            Cancelled: It was stopped.
        """
        if trouble := self._lacks(url, request):
            raise _ServerError(trouble, rest=False)
        try:
            return self._watched(url, request)
        except ServerUnreachableError as error:
            alive = self._lives(url)  # a scan that breaks the connection is not the other scans' affair
            raise _ServerError(str(error), rest=not alive, of_server=not alive) from None
        except ServerBusyError as error:
            raise _ServerError(
                f"{url} answered {http_statuses.describe(error.status)}", rest=True, seconds=error.seconds
            ) from None
        except (RequestRejectedError, ServerFailureError) as error:
            if isinstance(error, RequestRejectedError) and error.is_server_message and error.status in SCAN_ERRORS:
                # A model may have been taken away since it was looked for.
                if error.status == 400 and (trouble := self._lacks(url, request)):
                    raise _ServerError(trouble, rest=False) from None
                raise
            perhaps = error.status in POSSIBLE_SCAN_ERRORS
            told = f"{url} answered {http_statuses.describe(error.status)}"
            raise _ServerError(told, rest=not perhaps, of_server=not perhaps) from None
        except InputError as error:  # a file of ours cannot be read
            raise _ServerError(str(error), rest=False, of_server=False) from None
        except SemisegError as error:
            raise _ServerError(str(error), rest=True) from None

    def _watched(self, url: str, request: _Request) -> MultiFormatResult:
        """The request, given up when the server hangs or the job is stopped.

        It runs in a thread of its own, which is left behind when it is given up: a socket that waits for an answer
        cannot be woken. Its connection ends at the time-out at the latest.
        """
        outcome: list[MultiFormatResult | BaseException] = []
        ended = threading.Event()

        def ask() -> None:
            try:
                with Client(url, key=request.key, timeout=self._servers.timeout_seconds) as client:
                    outcome.append(client.ask_forms(request.files, request.forms, model=request.model))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                outcome.append(error)
            finally:
                ended.set()

        threading.Thread(target=ask, name="segment-request", daemon=True).start()
        silence = self._servers.silence_seconds
        heard = looked = time.monotonic()
        while not ended.wait(POLL_INTERVAL):
            if request.stopped():
                raise Cancelled("It was stopped while a server worked on it.")
            if time.monotonic() - looked < min(silence / 4, PROBE_SECONDS):
                continue
            if self._lives(url, min(silence / 2, PROBE_SECONDS)) or ended.is_set():
                heard = time.monotonic()
            elif time.monotonic() - heard >= silence:
                raise _ServerError(
                    f"{url} has answered nothing for {silence:g} s, not even whether it lives: it hangs, start it anew",
                    rest=True,
                )
            looked = time.monotonic()
        found = outcome[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def _lacks(self, url: str, request: _Request) -> str:
        """Why a server cannot be asked for the model; "" where it can, or does not say.

        Raises:
            _ServerError: It does not answer.
        """
        model = request.model
        try:
            with Client(url, key=request.key, timeout=PROBE_SECONDS) as client:
                names = sorted(str(one["identity"]["name"]) for one in client.models())
        except ServerUnreachableError as error:
            raise _ServerError(str(error), rest=True) from None
        except (SemisegError, ValueError, KeyError, TypeError, AttributeError):
            return ""  # the request itself gets an answer that is understood
        if model is not None and model not in names:
            return f"{url} has no model {model}, only {', '.join(names)}; load it there, or name another in the rule"
        if model is None and len(names) > 1:
            return f"{url} has several models ({', '.join(names)}), and the rule names none; name one in the rule"
        return ""

    def _lives(self, url: str, seconds: float = PROBE_SECONDS) -> bool:
        """Whether anything answers there, whatever it is."""
        with contextlib.suppress(SemisegError), Client(url, timeout=seconds) as client:
            return client.lives(seconds)
        return False


def _kept(files: Mapping[str, Sequence[bytes]], folder: Path) -> dict[str, list[str]]:
    kept: dict[str, list[str]] = {}
    for form, bodies in files.items():
        kept[form] = [f"{form}-{number:05d}.dcm" for number in range(1, len(bodies) + 1)]
        for name, body in zip(kept[form], bodies, strict=True):
            replace_file(folder / name, body)
    return kept
