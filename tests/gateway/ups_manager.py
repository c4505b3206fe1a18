"""A UPS-RS manager for the tests, written from the tables of PS3.4 annex CC and PS3.18 section 11.

The state machine is that of table CC.1.1-2 and answers with the status codes of the DIMSE operations; HTTP and, through
pynetdicom, DIMSE are two ways to the same workitems, as CC.1 asks for. What a performer may set and what has to be
there at the end are the columns "N-SET" and "Final State" of table CC.2.5-3.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import UnifiedProcedureStepPull, UnifiedProcedureStepPush  # type: ignore[attr-defined]
from pynetdicom.status import UNIFIED_PROCEDURE_STEP_SERVICE_CLASS_STATUS as STATUSES

from tests.gateway.ups_tables import PERFORMED, PROGRESS, code_item, find_violation, missing_attributes, parse_payload

MISSING_ATTRIBUTE, INVALID = 0x0120, 0x0106
# Table 11.7.3-1 and 11.6.3-1 allow 400 and 409 for the same things; managers differ, and so may this one.
HTTP_STATUS = {0xC307: 404, MISSING_ATTRIBUTE: 400, INVALID: 400}
STATUS_MEANINGS = {  # 11.6.3.2 and 11.7.3.2
    0xC301: "The Transaction UID is incorrect.",
    0xB304: "The UPS is already in the requested state of CANCELED.",
    0xB306: "The UPS is already in the requested state of COMPLETED.",
}
PATIENT = "Nobody^Anonymous"


class UpsManager:
    """The workitems, and what happened to them.

    Attributes:
        items: Workitems by UID, with their Transaction UID.
        history: (UID, event) in order: the states reached, and refusals by their status.
        before: Function that is called with each HTTP request before it is answered; True when it has answered.
        conflict: HTTP status of refusals for the state or the Transaction UID.
        asked: Methods and paths of the requests.
        url: Address below which `workitems` lies.
        requester: AE title that has to follow `state` in the address; "" where none does.
    """

    def __init__(self) -> None:
        self.items: dict[str, Dataset] = {}
        self.history: list[tuple[str, str]] = []
        self.before: Callable[[UpsRequestHandler], bool] = lambda _: False
        self.conflict = 409
        self.asked: list[tuple[str, str]] = []
        self.heads: list[dict[str, str]] = []
        self.url = ""
        self.requester = ""
        self.page = 10**6
        self.channels: dict[str, list[Any]] = {}
        self.subscribers: set[str] = set()
        self.lock = threading.RLock()

    def create(self, inputs: list[Dataset], *, label: str = "Segment", code: str = "SEG", **more: Any) -> str:
        """A workitem as N-CREATE makes it, with all that it has to have; its UID."""
        one = Dataset()
        one.SOPClassUID, one.SOPInstanceUID = UnifiedProcedureStepPush, generate_uid(None)
        one.ScheduledProcedureStepPriority, one.ProcedureStepLabel, one.WorklistLabel = "MEDIUM", label, "AI"
        one.ScheduledProcedureStepModificationDateTime = one.ScheduledProcedureStepStartDateTime = "20260101120000"
        for keyword in (
            "ScheduledProcessingParametersSequence",
            "ScheduledStationNameCodeSequence",
            PROGRESS,
            PERFORMED,
        ):
            setattr(one, keyword, [])
        one.ScheduledWorkitemCodeSequence = [code_item(code, "99TEST", "Segmentation")]
        one.InputReadinessState, one.InputInformationSequence = "READY", inputs
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = PATIENT, "SECRET-ID", "", ""
        one.ProcedureStepState, one.TransactionUID = "SCHEDULED", ""
        for keyword, value in more.items():
            setattr(one, keyword, value)
        with self.lock:
            self.items[str(one.SOPInstanceUID)] = one
        return str(one.SOPInstanceUID)

    def state(self, uid: str) -> str:
        return str(self.items[uid].ProcedureStepState)

    def states(self, uid: str) -> list[str]:
        """The states that a workitem went through, in order."""
        return [event for one, event in self.history if one == uid and not event.startswith("0x")]

    def set_state(self, uid: str, state: str) -> None:
        """Change a state as the manager itself may do at any time (CC.2.1.3)."""
        with self.lock:
            self.items[uid].ProcedureStepState = state
            self.history.append((uid, f"manager: {state}"))

    def change_state(self, uid: str, transaction: str, wanted: str) -> int:
        """Table CC.1.1-2, the rows of N-ACTION to change the state."""
        with self.lock:
            status = self._change_state(uid, transaction, wanted)
            assert status == 0 or status in STATUSES or status == MISSING_ATTRIBUTE, hex(status)
            self.history.append((uid, wanted if not status else f"0x{status:04X}"))
            return status

    def _change_state(self, uid: str, transaction: str, wanted: str) -> int:
        one = self.items.get(uid)
        if one is None:
            return 0xC307
        state, ours = str(one.ProcedureStepState), str(one.get("TransactionUID") or "")
        if not transaction:
            return 0xC301
        if wanted == "SCHEDULED":
            return 0xC303
        if wanted == "IN PROGRESS":
            if state == "SCHEDULED":
                one.TransactionUID, one.ProcedureStepState = transaction, wanted
                return 0
            return 0xC301 if transaction != ours else 0xC302 if state == "IN PROGRESS" else 0xC300
        if state == "SCHEDULED":
            return 0xC310
        if transaction != ours:
            return 0xC301
        if state != "IN PROGRESS":
            already = {"COMPLETED": 0xB306, "CANCELED": 0xB304}[wanted]
            return already if state == wanted else 0xC300
        if missing_attributes(one, wanted):
            return 0xC304
        one.ProcedureStepState = wanted
        return 0

    def request_cancel(self, uid: str) -> int:
        """Table CC.1.1-2, the row of N-ACTION to request a cancellation; 0xC312 where nobody would hear of it."""
        with self.lock:
            one = self.items.get(uid)
            if one is None:
                return 0xC307
            if one.ProcedureStepState == "COMPLETED":
                return 0xC311
            if one.ProcedureStepState == "CANCELED":
                return 0xB304
            if one.ProcedureStepState == "SCHEDULED":
                one.ProcedureStepState = "CANCELED"
                return 0
        return 0 if self.report(uid, 2, **{"00741236": {"vr": "AE", "Value": ["REQUESTER"]}}) else 0xC312

    def report(self, uid: str, kind: int, **more: Any) -> int:
        """An event report to all subscribers (11.13); the number of those who got it."""
        event = {
            "00000002": {"vr": "UI", "Value": [UnifiedProcedureStepPush]},
            "00001000": {"vr": "UI", "Value": [uid]},
            "00001002": {"vr": "US", "Value": [kind]},
            **more,
        }
        text = json.dumps(event).encode()
        assert len(text) < 2**16
        sent = 0
        for title in self.subscribers:
            for stream in self.channels.get(title, []):
                stream.write(b"\x81\x7e" + len(text).to_bytes(2, "big") + text)
                stream.flush()
                sent += 1
        return sent

    def update(self, uid: str, transaction: str, changes: Dataset) -> int:
        """N-SET (CC.2.6.3)."""
        with self.lock:
            one = self.items.get(uid)
            status = 0
            if one is None:
                status = 0xC307
            elif one.ProcedureStepState in ("COMPLETED", "CANCELED"):
                status = 0xC300
            elif one.ProcedureStepState == "SCHEDULED":
                status = 0xC310
            elif transaction != one.TransactionUID:
                status = 0xC301
            elif wrong := find_violation(changes):
                self.history.append((uid, f"0x0106 {wrong}"))
                status = INVALID
            if not status and one is not None:
                for element in changes:
                    if element.keyword != "TransactionUID":
                        one[element.tag] = element
            elif status:
                self.history.append((uid, f"0x{status:04X}"))
            return status

    def retrieve(self, uid: str) -> Dataset | None:
        """A workitem without its Transaction UID, which is nobody's but the owner's (11.5.3)."""
        with self.lock:
            one = self.items.get(uid)
            if one is None:
                return None
            copy = Dataset.from_json(one.to_json_dict())
            del copy.TransactionUID
            return copy


class UpsRequestHandler(BaseHTTPRequestHandler):
    """One HTTP request."""

    protocol_version = "HTTP/1.1"
    manager: UpsManager

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answered(b"")

    def do_PUT(self) -> None:
        self._answered(self.rfile.read(int(self.headers["Content-Length"])))

    def do_POST(self) -> None:
        self.do_PUT()

    def _answered(self, body: bytes) -> None:
        manager = self.manager
        self.body = body
        self.parts = urlsplit(self.path)
        self.path_below = [unquote(one) for one in self.parts.path.removeprefix("/ups").strip("/").split("/")]
        manager.asked.append((self.command, "/".join(self.path_below)))
        manager.heads.append(dict(self.headers))
        if manager.before(self):
            return
        if self.headers.get("Accept", "application/dicom+json") != "application/dicom+json":
            self.send(406)
        elif body and self.headers.get("Content-Type") != "application/dicom+json":
            self.send(415)
        elif self.path_below[0] == "subscribers" and self.headers.get("Upgrade") == "websocket":
            self._open_channel(self.path_below[1])
        elif self.path_below[0] != "workitems":
            self.send(404)
        else:
            self._workitems(self.path_below[1:], body)

    def _workitems(self, below: list[str], body: bytes) -> None:
        manager = self.manager
        match (self.command, len(below)):
            case ("GET", 0):
                self._search()
            case ("GET", 1):
                found = manager.retrieve(below[0])
                if found is None:
                    self.send(404)
                else:
                    self.send_datasets([found])
            case ("POST", 1):
                # The Transaction UID is the whole query (11.6.1.2).
                self.send_status(manager.update(below[0], self.parts.query, parse_payload(body)))
            case ("POST", 3) if below[1] == "subscribers":
                manager.subscribers.add(below[2])
                self.send(201, Content_Location=f"{manager.url.replace('http', 'ws', 1)}/subscribers/{below[2]}")
            case ("POST", 2) if below[1] == "cancelrequest":
                self.send_status(manager.request_cancel(below[0]), 202)
            case ("PUT", 2 | 3) if below[1] == "state" and below[2:] == (
                [manager.requester] if manager.requester else []
            ):
                wanted = parse_payload(body)
                transaction, state = str(wanted.get("TransactionUID", "")), str(wanted.get("ProcedureStepState", ""))
                self.send_status(manager.change_state(below[0], transaction, state))
            case _:
                self.send(404)

    def _open_channel(self, title: str) -> None:
        """A WebSocket (RFC 6455) that is written to by `report`, until the other side goes."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        self.manager.channels.setdefault(title, []).append(self.wfile)
        while self.rfile.read(1):
            pass
        self.manager.channels[title].remove(self.wfile)
        self.close_connection = True

    def _search(self) -> None:
        """Matching of single values, and paging."""
        query = parse_qsl(self.parts.query, keep_blank_values=True)
        keys = {name: value for name, value in query if name not in ("includefield", "limit", "offset")}
        with self.manager.lock:
            found = [one for one in self.manager.items.values() if all(str(one.get(k)) == v for k, v in keys.items())]
        numbers = {name: int(value) for name, value in query if name in ("limit", "offset")}
        start, limit = numbers.get("offset", 0), min(numbers.get("limit", 10**6), self.manager.page)
        page = found[start : start + limit]
        if not page:
            self.send(204)
            return
        copies = [self.manager.retrieve(str(one.SOPInstanceUID)) for one in page]
        self.send_datasets([one for one in copies if one is not None], 206 if start + limit < len(found) else 200)

    def send_status(self, status: int, good: int = 200) -> None:
        """Answer with what a status code of DIMSE is in HTTP, and with the words of the standard."""
        warning = STATUS_MEANINGS.get(
            status, "The submitted request is inconsistent with the current state of the UPS Instance."
        )
        code = good if status in (0, 0xB304, 0xB306) else HTTP_STATUS.get(status, self.manager.conflict)
        self.send(code, **({"Warning": f"299 <service>: {warning} {PATIENT}"} if status else {}))

    def send_datasets(self, found: list[Dataset], status: int = 200) -> None:
        self.send(status, json.dumps([one.to_json_dict() for one in found]).encode(), "application/dicom+json")

    def send(self, status: int, content: bytes = b"", kind: str = "text/plain", **headers: str) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if status != 204:
            self.wfile.write(content)


@contextlib.contextmanager
def ups_manager(port: int = 0) -> Iterator[UpsManager]:
    """A manager that answers on loopback."""
    manager = UpsManager()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (UpsRequestHandler,), {"manager": manager}))
    server.daemon_threads = True
    manager.url = f"http://127.0.0.1:{server.server_address[1]}/ups"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield manager
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serve_over_dimse(manager: UpsManager) -> Iterator[int]:
    """The same workitems over DIMSE (UPS Pull: N-GET, N-SET, N-ACTION), by pynetdicom; its port."""

    def act(event: evt.Event) -> tuple[int, Dataset | None]:
        told = event.action_information
        return manager.change_state(
            str(event.request.RequestedSOPInstanceUID), str(told.TransactionUID), str(told.ProcedureStepState)
        ), None

    def get(event: evt.Event) -> tuple[int, Dataset | None]:
        found = manager.retrieve(str(event.request.RequestedSOPInstanceUID))
        return (0xC307, None) if found is None else (0x0000, found)

    def change(event: evt.Event) -> tuple[int, Dataset | None]:
        told = event.modification_list
        return manager.update(str(event.request.RequestedSOPInstanceUID), str(told.TransactionUID), told), told

    entity = AE()
    entity.add_supported_context(UnifiedProcedureStepPull)
    handlers = [(evt.EVT_N_ACTION, act), (evt.EVT_N_GET, get), (evt.EVT_N_SET, change)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


def never_respond(answer: UpsRequestHandler) -> bool:
    """Give no answer for as long as anybody waits."""
    time.sleep(3600)
    return True


def respond_with_login_page(answer: UpsRequestHandler) -> bool:
    answer.send(200, f"<html>Please log in. {PATIENT}</html>".encode(), "text/html")
    return True
