"""User agent of UPS-RS (PS3.18 11): search, retrieve, change state, update and subscribe."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests
from pydicom.dataset import Dataset

from semiseg.client import retry_after
from semiseg.errors import InputError, SemisegError
from server.gateway import http_statuses
from server.gateway.dicom_json import values_of
from server.gateway.dicomweb import RedirectRefused, create_session, read_secret, url_origin
from server.gateway.ups_config import Worklist

DICOM_JSON = "application/dicom+json"
ANSWER_BYTES = 64 * 2**20
GLOBAL_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5"  # the well-known UID (PS3.4 CC.2.3.1)
PAGE, MAX_WORKITEMS = 100, 5000  # workitems of one page, and of one query
# Attributes requested in addition to the return keys of PS3.4 table CC.2.5-3 that the manager supports.
INCLUDE_FIELDS = (
    "InputInformationSequence",
    "InputReadinessState",
    "ProcedureStepLabel",
    "ScheduledProcedureStepExpirationDateTime",
    "ScheduledProcedureStepPriority",
    "ScheduledStationNameCodeSequence",
    "ScheduledWorkitemCodeSequence",
)
Json = dict[str, Any]


class ManagerUnavailable(SemisegError):  # noqa: N818 - temporary
    """The manager does not work or cannot be reached, so the state of the workitem is unknown.

    Attributes:
        seconds: Delay in seconds that the manager asked for; 0 if it did not.
    """

    def __init__(self, sentence: str, seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class WorkitemNotFound(SemisegError):  # noqa: N818 - an answer
    """The manager answers that it has no such workitem.

    Attributes:
        deleted: True for 410, which only a manager that knew the workitem returns; a 404 may come from a proxy.
    """

    def __init__(self, *, deleted: bool) -> None:
        super().__init__("The manager has no such workitem.")
        self.deleted = deleted


class WorkitemConflict(SemisegError):  # noqa: N818 - an answer
    """The manager refuses a request because of the workitem's state or Transaction UID (400, 409), or its content.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"The manager refused it with HTTP {status}.")
        self.status = status


class UpsClient:
    """Client of one origin server; for use by one thread at a time.

    Redirects to another host are not followed. Texts of responses (Warning, status reports) are not repeated, because
    they may contain patient data.
    """

    def __init__(self, worklist: Worklist, ae_title: str) -> None:
        """Configure the client; no connection is opened.

        Args:
            worklist: Configuration of the worklist.
            ae_title: AE title of the gateway, for managers that require it in the address.
        """
        self._worklist, self._ae_title = worklist, ae_title
        self._headers: Mapping[str, str] = {}  # of the last response

    def search(self) -> list[Json]:
        """Return the SCHEDULED workitems that match (11.9), queried page by page.

        Input Readiness State is not used as a key, because managers that do not support it refuse the whole query; it
        is checked afterwards.

        Raises:
            ManagerUnavailable: The manager did not return a list.
        """
        found: dict[str, Json] = {}
        asked = 0
        while len(found) < MAX_WORKITEMS:
            query = {"ProcedureStepState": "SCHEDULED", **self._worklist.matching}
            pages: list[tuple[str, str | int]] = [*query.items(), *(("includefield", name) for name in INCLUDE_FIELDS)]
            pages += [("limit", PAGE), ("offset", asked)]
            status, content = self._request("GET", "/workitems", params=pages)
            if status == 204:
                break
            if status not in (200, 206):
                raise ManagerUnavailable(f"{self._worklist.url} answered {http_statuses.describe(status)}.")
            page = self._datasets(content)
            before, asked = len(found), asked + len(page)
            for one in page:
                uid = text_value(one, "SOPInstanceUID")
                if uid:
                    found.setdefault(str(uid), one)
            if len(found) == before or (len(page) < PAGE and status != 206):
                break
        return list(found.values())

    def retrieve(self, uid: str) -> Json:
        """Retrieve a workitem (11.5).

        Raises:
            WorkitemNotFound, WorkitemConflict, ManagerUnavailable: The manager did not return the workitem.
        """
        status, content = self._request("GET", f"/workitems/{quote(uid, safe='')}")
        self._require(status)
        found = self._datasets(content)
        if len(found) != 1:
            raise ManagerUnavailable(f"{self._worklist.url} returned {len(found)} workitems instead of one.")
        return found[0]

    def change_state(self, uid: str, transaction: str, state: str) -> None:
        """Claim, complete or cancel a workitem (11.7). It succeeds if the workitem is already in the final state.

        Args:
            uid: SOP Instance UID of the workitem.
            transaction: Transaction UID.
            state: New state: ``IN PROGRESS``, ``COMPLETED`` or ``CANCELED``.

        Raises:
            WorkitemNotFound, WorkitemConflict, ManagerUnavailable: The state was not changed, or this is unknown.
        """
        payload = Dataset()
        payload.TransactionUID, payload.ProcedureStepState = transaction, state
        requester = f"/{quote(self._ae_title, safe='')}" if self._worklist.requester else ""
        path = f"/workitems/{quote(uid, safe='')}/state{requester}"
        self._require(self._request("PUT", path, content=payload)[0])

    def update(self, uid: str, transaction: str, changes: Dataset) -> None:
        """Set attributes of a workitem that this gateway has claimed (11.6).

        The Transaction UID is sent both as the query (PS3.18) and as an attribute (PS3.4 CC.2.6.2), because managers
        read one or the other.

        Raises:
            WorkitemNotFound, WorkitemConflict, ManagerUnavailable: Nothing was changed, or this is unknown.
        """
        payload = Dataset()
        payload.update(changes)
        payload.TransactionUID = transaction
        path = f"/workitems/{quote(uid, safe='')}?{transaction}"
        self._require(self._request("POST", path, content=payload)[0])

    def subscribe(self, usual: str) -> str:
        """Subscribe to the events of all workitems (11.10), without deletion locks.

        Args:
            usual: Address of the event channel (11.12) to use if the manager returns none, or one on another host.

        Returns:
            Address of the event channel.

        Raises:
            WorkitemNotFound, WorkitemConflict, ManagerUnavailable: The subscription failed.
        """
        title = quote(self._ae_title, safe="")
        path = f"/workitems/{GLOBAL_SUBSCRIPTION}/subscribers/{title}?deletionlock=false"
        status, _ = self._request("POST", path)
        self._require(status)
        named = self._headers.get("Content-Location") or self._headers.get("Location") or ""
        return named if is_manager_address(named, self._worklist) else usual

    def _require(self, status: int) -> None:
        if 200 <= status < 300:
            return
        if status in (404, 410):
            raise WorkitemNotFound(deleted=status == 410)
        if status in (400, 409):
            raise WorkitemConflict(status)
        raise ManagerUnavailable(f"{self._worklist.url} answered {http_statuses.describe(status)}.")

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: list[tuple[str, str | int]] | None = None,
        content: Dataset | None = None,
    ) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of the response.

        Raises:
            ManagerUnavailable: The response was not complete in time, or its status asks for a later retry (429, 503).
        """
        worklist = self._worklist
        headers = {"Accept": DICOM_JSON, "Cache-Control": "no-cache"}
        body = None
        if content is not None:
            headers["Content-Type"] = DICOM_JSON
            body = json.dumps([content.to_json_dict()]).encode()
        try:
            with create_session(worklist.token) as session:
                session.headers.update({name: read_secret(file) for name, file in worklist.headers.items()})
                if worklist.authority is not None:
                    session.verify = str(worklist.authority)
                deadline = time.monotonic() + worklist.answer_seconds
                times = (worklist.connect_seconds, worklist.answer_seconds)
                with session.request(
                    method,
                    f"{worklist.url}{path}",
                    params=params,
                    data=body,
                    headers=headers,
                    timeout=times,
                    stream=True,
                ) as answer:
                    found = self._whole(answer, deadline)
                    wait = retry_after(answer.headers.get("Retry-After")) or 0.0
                    if answer.status_code in (429, 503):
                        raise ManagerUnavailable(
                            f"{worklist.url} answered {http_statuses.describe(answer.status_code)}.", wait
                        )
                    self._headers = answer.headers
                    return answer.status_code, found
        except requests.RequestException as error:
            raise ManagerUnavailable(f"{worklist.url} {_why(error)}.") from None
        except InputError as error:
            raise ManagerUnavailable(str(error)) from None
        except OSError as error:  # the file with certificates cannot be read
            raise ManagerUnavailable(f"{worklist.authority} cannot be used ({error.strerror or error}).") from None

    def _whole(self, answer: requests.Response, deadline: float) -> bytes:
        found = bytearray()
        for chunk in answer.iter_content(2**16):
            found += chunk
            if len(found) > ANSWER_BYTES:
                raise ManagerUnavailable(
                    f"{self._worklist.url} sent a response of more than {ANSWER_BYTES // 2**20} MB."
                )
            if time.monotonic() > deadline:
                raise ManagerUnavailable(
                    f"{self._worklist.url} did not complete its response within {self._worklist.answer_seconds:g} s."
                )
        return bytes(found)

    def _datasets(self, content: bytes) -> list[Json]:
        """Return the data sets of a DICOM JSON document (PS3.18 F.2), which some managers send without the array."""
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        found = [found] if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ManagerUnavailable(
                f"{self._worklist.url} answered with content that is not DICOM JSON; check that `url` is the "
                "address of a UPS-RS service, and that it is not a login page"
            )
        return found


def is_manager_address(address: str, worklist: Worklist) -> bool:
    """Return True if a WebSocket's address has the manager's host and port, and uses TLS if the manager does."""
    scheme, _, rest = address.partition("://")
    over = {"ws": "http", "wss": "https"}.get(scheme.lower())
    return over is not None and url_origin(f"{over}://{rest}") == url_origin(worklist.url)


def _why(error: requests.RequestException) -> str:
    if isinstance(error, RedirectRefused):
        return f"answered {error}"
    if isinstance(error, requests.exceptions.SSLError):
        return "makes no trusted TLS connection; check `authority` and the host name"
    if isinstance(error, requests.Timeout):
        return "did not answer in time"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached, or closed the connection"
    return f"did not answer ({type(error).__name__})"


def sequence_items(dataset: object, keyword: str) -> list[Json]:
    """Return the items of a sequence in DICOM JSON; empty if there is no such sequence."""
    return [one for one in _values(dataset, keyword) if isinstance(one, dict)]


def text_value(dataset: object, keyword: str) -> str:
    """Return the first value of an attribute in DICOM JSON as text; "" if there is none."""
    values = [one for one in _values(dataset, keyword) if isinstance(one, (str, int, float))]
    return str(values[0]).strip() if values else ""


def text_values(dataset: object, keyword: str) -> list[str]:
    """Return all values of an attribute in DICOM JSON as text."""
    return [str(one).strip() for one in _values(dataset, keyword) if isinstance(one, (str, int, float))]


def _values(dataset: object, keyword: str) -> list[Any]:
    from pydicom.datadict import tag_for_keyword

    return values_of(dataset, f"{tag_for_keyword(keyword):08X}")
