"""What is said of an archive with which there is no association."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification  # type: ignore[attr-defined]

from server.gateway.application_entity import AssociationFailed, associate, create_application_entity
from server.gateway.config import Tls
from server.gateway.config_types import DimseNode
from tests.ports import free_port

ABORT = bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 0])  # of the service provider, no reason given (PS3.8 table 9-26)


@contextmanager
def archive(refuses: bool = False) -> Iterator[DimseNode]:
    """One that takes MR images only."""
    made = AE(ae_title="ARCHIVE")
    made.add_supported_context(MRImageStorage)
    made.require_called_aet = refuses
    server = made.start_server(("127.0.0.1", 0), block=False)
    try:
        port = server.socket.getsockname()[1]
        yield DimseNode(host="127.0.0.1", port=port, ae_title="OTHER" if refuses else "ARCHIVE")
    finally:
        server.shutdown()


def asked(to: DimseNode, what: str = MRImageStorage, slowly: bool = False) -> str:
    ours = create_application_entity("SEMISEG", seconds=5)
    ours.add_requested_context(what)
    # On a busy machine the thread that asked comes to look after the answer and the end of the connection have come.
    late: list[evt.EventHandlerType] = [(evt.EVT_REQUESTED, lambda event: time.sleep(0.5))] if slowly else []
    try:
        association = associate(ours, to, late)
    except AssociationFailed as why:
        return str(why)
    association.release()
    return "associated"


@pytest.mark.parametrize("slowly", [False, True])
def test_archive_that_rejects_is_quoted_however_late_we_look(slowly: bool) -> None:
    with archive(refuses=True) as to:
        assert asked(to, slowly=slowly) == "rejected the association (Called AE title not recognised)"


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ABORT, "ended the association early"),
        (b"", "accepts the connection but does not answer in DICOM (check the port, and whether it requires TLS)"),
    ],
)
def test_archive_that_aborts_or_hangs_up_has_answered_somehow(answer: bytes, words: str, slowly: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def once() -> None:
            line, _ = listening.accept()
            with line:
                line.recv(65536)
                line.sendall(answer)

        peer = threading.Thread(target=once)
        peer.start()
        to = DimseNode(host="127.0.0.1", port=listening.getsockname()[1], ae_title="ARCHIVE")
        assert asked(to, slowly=slowly) == words
        peer.join()


@pytest.mark.parametrize("slowly", [False, True])
def test_archive_that_accepts_is_associated_if_it_takes_what_is_meant_for_it(slowly: bool) -> None:
    with archive() as to:
        assert asked(to, slowly=slowly) == "associated"
        assert asked(to, Verification, slowly) == "accepts none of the proposed presentation contexts"


def test_nobody_there_does_not_answer() -> None:
    nobody = DimseNode(host="127.0.0.1", port=free_port(), ae_title="NOBODY")
    assert asked(nobody) == "does not answer"
    secret = nobody.model_copy(update={"tls": Tls()})
    assert asked(secret) == "does not answer, or not with TLS and a trusted certificate"
