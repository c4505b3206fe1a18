"""Our side of every DIMSE association: who we say we are, what ends one, and what became of one that was asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from semiseg.errors import SemisegError
from server.gateway.config import DimseDestination
from server.gateway.tls import client_context

# PS3.7 D.3.3.2; a UUID as PS3.5 B.2 allows. It stays the same as long as the conformance statement does.
IMPLEMENTATION_CLASS = "2.25.279520917705210394514673571246121522162"
SERVICE_PROVIDER, INVALID_VALUE = 0x02, 0x06  # source and reason of an A-ABORT (PS3.8 table 9-26)

_LOG = logging.getLogger("semiseg.gateway")


class AssociationFailed(SemisegError):  # noqa: N818 - it is tried again
    """There is no association; the message is the end of a sentence that begins with the other side's name."""


class NoContextAccepted(AssociationFailed):
    """The other side accepted the association and none of its presentation contexts."""


def create_application_entity(title: str, *, seconds: float = 30.0) -> AE:
    """An application entity that waits ``seconds`` for a connection, an association and an answer."""
    made = AE(ae_title=title)
    made.implementation_class_uid = IMPLEMENTATION_CLASS
    made.implementation_version_name = f"SEMISEG {version('semiseg')}"[:16]
    made.connection_timeout = made.acse_timeout = made.dimse_timeout = made.network_timeout = seconds
    return made


def associate(
    ours: AE,
    to: DimseDestination,
    handlers: Sequence[evt.EventHandlerType] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    contexts: Sequence[PresentationContext] = (),
) -> Association:
    """An association with an archive, for what was asked of ``ours``, in the ``roles`` that are not the usual ones.

    With ``contexts`` these are asked for instead: ``ours`` would merge several of one abstract syntax into one.

    What came over the line is kept here: pynetdicom calls an association aborted, without a reason, when there was no
    connection, and also when the archive rejected it and hung up before its own thread had looked.

    Raises:
        AssociationFailed: the archive does not answer, or says no.
        NoContextAccepted: it takes none of the presentation contexts.
        InputError: our certificate cannot be used.
    """
    heard: list[object] = []
    connected = threading.Event()

    def connect(event: evt.Event) -> None:
        event.assoc.dul.name = f"DUL@{to.host}"  # for the lines of the log that keep back what pynetdicom said
        abort_on_invalid_message(event.assoc, partial(_LOG.warning, "%s at %s: %s", to.ae_title, to.host))
        connected.set()

    def hear(event: evt.Event) -> None:
        heard.append(event.pdu)

    try:
        association = ours.associate(
            to.host,
            to.port,
            ae_title=to.ae_title,
            contexts=list(contexts) or None,
            ext_neg=list(roles),
            evt_handlers=[*handlers, (evt.EVT_CONN_OPEN, connect), (evt.EVT_PDU_RECV, hear)],
            tls_args=None if to.tls is None else (client_context(to.tls), to.host),
        )
    except OSError:  # pynetdicom looks the name up before it opens its connection
        raise AssociationFailed("does not answer: nobody knows its name; check `host`, and the name service") from None
    if association.is_established:
        association.unbind(evt.EVT_PDU_RECV, hear)
        return association
    if not connected.is_set():
        trusted = "" if to.tls is None else ", or not with TLS and a certificate that can be trusted"
        raise AssociationFailed(f"does not answer{trusted}")
    if not heard:
        raise AssociationFailed("takes the connection and gives no DICOM answer (is it the port, and does it want TLS)")
    if isinstance(heard[0], A_ASSOCIATE_RJ):
        raise AssociationFailed(f"rejected the association ({heard[0].reason_str})")
    if isinstance(heard[0], A_ASSOCIATE_AC):
        raise NoContextAccepted("takes nothing of what is meant for it")
    raise AssociationFailed("broke the association off")


def abort_on_invalid_message(association: Association, told: Callable[[str], None]) -> None:
    """Abort an association when a message in it cannot be decoded.

    pynetdicom's reader would end with the error instead, and the association would stay until a time-out.

    Args:
        association: Association, of either role.
        told: Function that is told what is wrong, as a sentence without its end.
    """
    receive = association.dimse.receive_primitive

    def received(primitive: Any) -> None:
        try:
            receive(primitive)
        except Exception as error:  # noqa: BLE001 - whatever a peer's bytes bring about
            told(f"a message of it breaks PS3.7 ({type(error).__name__})")
            abort = A_ABORT_RQ()
            abort.source, abort.reason_diagnostic = SERVICE_PROVIDER, INVALID_VALUE
            association.dul._send(abort)
            # What pynetdicom does at an invalid PDU would leave whoever waits for an answer waiting until the time-out.
            if (connection := association.dul.socket) is not None:
                connection.close()

    association.dimse.receive_primitive = received  # type: ignore[method-assign]
