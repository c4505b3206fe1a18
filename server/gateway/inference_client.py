"""Client of the segmentation servers: sends each scan to one server of the pool and writes its results to disk."""

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
from server.gateway.config import FormatName, Servers
from server.gateway.dicomweb import read_secret
from server.gateway.server_pool import ServerPool

PROBE_SECONDS = 10.0  # time-out of small requests
POLL_INTERVAL = 0.2
SCAN_ERRORS = frozenset({400, 415, 422})  # errors of the scan, with a message of the server
POSSIBLE_SCAN_ERRORS = frozenset({408, 413, 500})  # the server works, but cannot process this scan at present

_LOG = logging.getLogger("semiseg.gateway")


class ServersUnavailable(SemisegError):  # noqa: N818 - temporary
    """No server could segment the scan at present.

    Attributes:
        seconds: Delay that one of the servers asked for; 0 if none did.
        of_servers: True if the servers are the cause, so that other scans fail, too; False if it may be the scan.
    """

    def __init__(self, sentence: str, seconds: float = 0.0, *, of_servers: bool = False) -> None:
        super().__init__(sentence)
        self.seconds, self.of_servers = seconds, of_servers


class _ServerError(SemisegError):
    """One server could not segment the scan.

    Attributes:
        rest: True if other servers are preferred for a while.
        seconds: Delay that the server asked for; None if it did not.
        of_server: True if other scans would fail there, too.
    """

    def __init__(self, sentence: str, *, rest: bool, seconds: float | None = None, of_server: bool = True) -> None:
        super().__init__(sentence)
        self.rest, self.seconds, self.of_server = rest, seconds, of_server


@dataclass(frozen=True)
class _Request:
    """Request for the segmentation of a scan, independent of the server.

    Attributes:
        key: API key; None if the servers need none.
        files: DICOM files of the scan.
        forms: Output formats.
        model: Name of the server's model; None if it has only one.
        stopped: Function that returns True once the job is to stop.
    """

    key: str | None
    files: Sequence[Path]
    forms: Sequence[FormatName]
    model: str | None
    stopped: Callable[[], bool]


@dataclass(frozen=True)
class SegmentedScan:
    """Results for a scan.

    Attributes:
        files: Names of the files of each output format.
        server: Address of the server.
        metadata: Model, segment volumes and scan warnings, as reported by the server.
    """

    files: dict[str, list[str]]
    server: str
    metadata: dict[str, Any]


class InferenceClient:
    """Sends scans to the servers."""

    def __init__(self, servers: Servers, pool: ServerPool) -> None:
        """Use the servers of ``pool``; the API key is read from its file for each scan.

        Raises:
            InputError: The key cannot be read.
        """
        self._servers, self._pool = servers, pool
        self._key()

    def segment(
        self,
        files: Sequence[Path],
        forms: Sequence[FormatName],
        model: str | None,
        folder: Path,
        stopped: Callable[[], bool],
    ) -> SegmentedScan:
        """Have a scan segmented, and write each output format into ``folder``.

        Args:
            files: DICOM files of the scan.
            forms: Output formats.
            model: Name of the server's model; None if it has only one.
            folder: Existing folder for the results.
            stopped: Function that returns True once the job is to stop; called repeatedly.

        Raises:
            InputError: A server refused this scan; a retry would not help.
            ServersUnavailable: No server answered, had capacity or had the model, or each server failed on the scan.
            Cancelled: The job was stopped.
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
        """Have the scan segmented by one server.

        Raises:
            InputError: The server refused the scan; the message is the server's.
            _ServerError: Any other failure.
            Cancelled: The job was stopped.
        """
        if trouble := self._lacks(url, request):
            raise _ServerError(trouble, rest=False)
        try:
            return self._watched(url, request)
        except ServerUnreachableError as error:
            alive = self._lives(url)  # if the scan caused it, other scans are not affected
            raise _ServerError(str(error), rest=not alive, of_server=not alive) from None
        except ServerBusyError as error:
            raise _ServerError(
                f"{url} answered {http_statuses.describe(error.status)}", rest=True, seconds=error.seconds
            ) from None
        except (RequestRejectedError, ServerFailureError) as error:
            if isinstance(error, RequestRejectedError) and error.is_server_message and error.status in SCAN_ERRORS:
                # The model may have been unloaded since the check.
                if error.status == 400 and (trouble := self._lacks(url, request)):
                    raise _ServerError(trouble, rest=False) from None
                raise
            perhaps = error.status in POSSIBLE_SCAN_ERRORS
            told = f"{url} answered {http_statuses.describe(error.status)}"
            raise _ServerError(told, rest=not perhaps, of_server=not perhaps) from None
        except InputError as error:  # a file of the scan cannot be read
            raise _ServerError(str(error), rest=False, of_server=False) from None
        except SemisegError as error:
            raise _ServerError(str(error), rest=True) from None

    def _watched(self, url: str, request: _Request) -> MultiFormatResult:
        """Send the request, and abandon it if the server hangs or the job is stopped.

        The request runs in a thread of its own, which is abandoned with it, because a socket that waits for a response
        cannot be interrupted. Its connection ends at the time-out at the latest.
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
                raise Cancelled("It was stopped while a server processed it.")
            if time.monotonic() - looked < min(silence / 4, PROBE_SECONDS):
                continue
            if self._lives(url, min(silence / 2, PROBE_SECONDS)) or ended.is_set():
                heard = time.monotonic()
            elif time.monotonic() - heard >= silence:
                raise _ServerError(
                    f"{url} has not responded for {silence:g} s, not even to liveness checks; it hangs, restart it",
                    rest=True,
                )
            looked = time.monotonic()
        found = outcome[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def _lacks(self, url: str, request: _Request) -> str:
        """Return why a server cannot segment with the model; "" if it can, or if it does not list its models.

        Raises:
            _ServerError: The server does not answer.
        """
        model = request.model
        try:
            with Client(url, key=request.key, timeout=PROBE_SECONDS) as client:
                names = sorted(str(one["identity"]["name"]) for one in client.models())
        except ServerUnreachableError as error:
            raise _ServerError(str(error), rest=True) from None
        except (SemisegError, ValueError, KeyError, TypeError, AttributeError):
            return ""  # the request itself will be answered with an error
        if model is not None and model not in names:
            return f"{url} has no model {model}, only {', '.join(names)}; load it there, or name another in the rule"
        if model is None and len(names) > 1:
            return f"{url} has several models ({', '.join(names)}), and the rule names none; name one in the rule"
        return ""

    def _lives(self, url: str, seconds: float = PROBE_SECONDS) -> bool:
        """Return True if the server answers a liveness check."""
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
