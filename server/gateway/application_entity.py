"""The gateway's application entity: its identification, and the request and abort of DIMSE associations."""

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
from server.gateway.config_types import DimseNode
from server.gateway.reactor_pauses import make_pauses_reliable
from server.gateway.tls import client_context

# PS3.7 D.3.3.2; derived from a UUID (PS3.5 B.2). It changes only with the conformance statement.
IMPLEMENTATION_CLASS = "2.25.279520917705210394514673571246121522162"
SERVICE_PROVIDER, INVALID_VALUE = 0x02, 0x06  # source and reason of an A-ABORT (PS3.8 table 9-26)

_LOG = logging.getLogger("semiseg.gateway")


class AssociationFailed(SemisegError):  # noqa: N818 - it is retried
    """No association was established; the message is the end of a sentence that begins with the peer's name."""


class NoContextAccepted(AssociationFailed):
    """The peer accepted the association but none of its presentation contexts."""


def create_application_entity(title: str, *, seconds: float = 30.0) -> AE:
    """Create an application entity that waits ``seconds`` for a connection, an association and a response."""
    made = AE(ae_title=title)
    made.implementation_class_uid = IMPLEMENTATION_CLASS
    made.implementation_version_name = f"SEMISEG {version('semiseg')}"[:16]
    made.connection_timeout = made.acse_timeout = made.dimse_timeout = made.network_timeout = seconds
    return made


def associate(
    ours: AE,
    to: DimseNode,
    handlers: Sequence[evt.EventHandlerType] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    contexts: Sequence[PresentationContext] = (),
) -> Association:
    """Establish an association with an archive.

    The received PDUs are recorded, because pynetdicom reports an association as aborted, without a reason, both when
    there was no connection and when the archive rejected it and closed the connection quickly.

    Args:
        ours: Application entity of the gateway; its requested contexts are proposed.
        to: Archive, or another application entity.
        handlers: Event handlers of pynetdicom.
        roles: Role selections that differ from the default.
        contexts: Presentation contexts to propose instead, since ``ours`` would merge several contexts of one abstract
            syntax into one.

    Raises:
        AssociationFailed: The archive does not answer, or rejects the association.
        NoContextAccepted: The archive accepts none of the presentation contexts.
        InputError: The gateway's certificate cannot be used.
    """
    heard: list[object] = []
    connected = threading.Event()

    def connect(event: evt.Event) -> None:
        event.assoc.dul.name = f"DUL@{to.host}"  # named in the log where the text of pynetdicom is withheld
        make_pauses_reliable(event.assoc)
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
    except OSError:  # pynetdicom resolves the name before it opens the connection
        raise AssociationFailed(
            "does not answer: its name cannot be resolved; check `host` and the name service"
        ) from None
    if association.is_established:
        association.unbind(evt.EVT_PDU_RECV, hear)
        return association
    if not connected.is_set():
        trusted = "" if to.tls is None else ", or not with TLS and a trusted certificate"
        raise AssociationFailed(f"does not answer{trusted}")
    if not heard:
        raise AssociationFailed(
            "accepts the connection but does not answer in DICOM (check the port, and whether it requires TLS)"
        )
    if isinstance(heard[0], A_ASSOCIATE_RJ):
        raise AssociationFailed(f"rejected the association ({heard[0].reason_str})")
    if isinstance(heard[0], A_ASSOCIATE_AC):
        raise NoContextAccepted("accepts none of the proposed presentation contexts")
    raise AssociationFailed("ended the association early")


def abort_on_invalid_message(association: Association, told: Callable[[str], None]) -> None:
    """Abort an association when a message in it cannot be decoded.

    Otherwise, the reader of pynetdicom would end with the error, and the association would stay open until a time-out.

    Args:
        association: Association, of either role.
        told: Function that is called with the reason, as a sentence without a full stop.
    """
    receive = association.dimse.receive_primitive

    def received(primitive: Any) -> None:
        try:
            receive(primitive)
        except Exception as error:  # noqa: BLE001 - malformed bytes can raise any exception
            told(f"one of its messages violates PS3.7 ({type(error).__name__})")
            abort = A_ABORT_RQ()
            abort.source, abort.reason_diagnostic = SERVICE_PROVIDER, INVALID_VALUE
            association.dul._send(abort)
            # The reaction of pynetdicom to an invalid PDU would leave a caller waiting until its time-out.
            if (connection := association.dul.socket) is not None:
                connection.close()

    association.dimse.receive_primitive = received  # type: ignore[method-assign]
