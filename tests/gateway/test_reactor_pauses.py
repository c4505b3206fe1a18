"""Threads of one association that meet on a busy machine; the delays make each meeting certain."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import MODE_REQUESTOR, Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from server.gateway.application_entity import associate, create_application_entity
from server.gateway.config_types import DimseNode
from server.gateway.reactor_pauses import make_pauses_reliable


def transaction() -> Dataset:
    information = Dataset()
    information.TransactionUID = "1.2.3"
    return information


@contextmanager
def archive(answers: list[Any]) -> Iterator[DimseNode]:
    """An archive that reports at once on the association of the request; ``answers`` gets the responses to reports."""
    made = AE(ae_title="ARCHIVE")
    made.add_supported_context(Verification)
    made.add_supported_context(StorageCommitmentPushModel)
    made.dimse_timeout = 5

    def report(association: Association) -> None:
        status, _ = association.send_n_event_report(
            transaction(), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        answers.append(status.get("Status"))

    def commit(event: evt.Event) -> tuple[int, None]:
        threading.Thread(target=report, args=(event.assoc,)).start()
        return 0x0000, None

    server = made.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_ACTION, commit)])
    assert server is not None
    try:
        yield DimseNode(host="127.0.0.1", port=server.socket.getsockname()[1], ae_title="ARCHIVE")
    finally:
        server.shutdown()


def associated(to: DimseNode, on_report: Any = lambda event: (0x0000, None)) -> Association:
    ours = create_application_entity("SEMISEG", seconds=5)
    ours.add_requested_context(Verification)
    ours.add_requested_context(StorageCommitmentPushModel)
    return associate(ours, to, [(evt.EVT_N_EVENT_REPORT, on_report)])


def request(association: Association) -> None:
    status, _ = association.send_n_action(
        transaction(), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    assert status.Status == 0x0000


def test_reactor_that_has_just_passed_its_checkpoint_takes_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = threading.Event.wait

    def late(event: threading.Event, timeout: float | None = None) -> bool:
        came = wait(event, timeout)
        if getattr(threading.current_thread(), "mode", "") == MODE_REQUESTOR:
            time.sleep(0.2)
        return came

    with archive([]) as to:
        association = associated(to)
        send = association.dimse.send_msg

        def send_slowly(*message: Any) -> None:
            send(*message)
            time.sleep(0.4)

        monkeypatch.setattr(association.dimse, "send_msg", send_slowly)
        monkeypatch.setattr(threading.Event, "wait", late)
        time.sleep(0.3)
        assert association.send_c_echo().get("Status") == 0x0000
        monkeypatch.undo()
        association.release()
        assert association.is_released


def test_association_is_released_after_the_answer_to_its_report() -> None:
    came, answers = threading.Event(), []

    def slow(event: evt.Event) -> tuple[int, None]:
        came.set()
        time.sleep(0.5)
        return 0x0000, None

    with archive(answers) as to:
        association = associated(to, slow)
        request(association)
        assert came.wait(5)
        association.release()
        assert association.is_released
        assert answers == [0x0000]


def test_report_that_has_been_served_ends_nobody_elses_pause() -> None:
    """The report's thread ends between the beginning of a pause and the sender's look at it."""
    served: list[threading.Thread] = []
    came = threading.Event()

    def note(event: evt.Event) -> tuple[int, None]:
        served.append(threading.current_thread())
        came.set()
        time.sleep(0.3)
        return 0x0000, None

    with archive([]) as to:
        association = associated(to, note)
        request(association)
        assert came.wait(5)
        clear = association._reactor_checkpoint.clear

        def cleared() -> None:
            clear()
            served[0].join(5)

        association._reactor_checkpoint.clear = cleared  # type: ignore[method-assign]
        echoes: list[Any] = []
        echo = threading.Thread(target=lambda: echoes.append(association.send_c_echo().get("Status")), daemon=True)
        echo.start()
        echo.join(10)
        assert echoes == [0x0000]
        association.release()


def test_report_does_not_go_out_before_the_response_to_its_request() -> None:
    """The handler answers slowly, after it has started the thread that reports."""
    received: list[str] = []

    def report(association: Association) -> None:
        association.send_n_event_report(
            transaction(), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )

    def commit(event: evt.Event) -> tuple[int, None]:
        threading.Thread(target=report, args=(event.assoc,)).start()
        time.sleep(0.4)
        return 0x0000, None

    made = AE(ae_title="GATEWAY")
    made.add_supported_context(StorageCommitmentPushModel)
    reliable = (evt.EVT_CONN_OPEN, lambda event: make_pauses_reliable(event.assoc))
    server = made.start_server(("127.0.0.1", 0), block=False, evt_handlers=[reliable, (evt.EVT_N_ACTION, commit)])
    assert server is not None
    try:
        sender = AE(ae_title="SCANNER")
        sender.add_requested_context(StorageCommitmentPushModel)
        came = threading.Event()

        def take(event: evt.Event) -> tuple[int, None]:
            came.set()
            return 0x0000, None

        def note(event: evt.Event) -> None:
            received.append(type(event.message).__name__)

        association = sender.associate(
            "127.0.0.1",
            server.socket.getsockname()[1],
            evt_handlers=[reliable, (evt.EVT_DIMSE_RECV, note), (evt.EVT_N_EVENT_REPORT, take)],
        )
        request(association)
        assert came.wait(10)
        assert received == ["N_ACTION_RSP", "N_EVENT_REPORT_RQ"]
        association.release()
    finally:
        server.shutdown()
