"""The DIMSE listener: SCP of C-ECHO, C-STORE and storage commitment (PS3.4 Annexes A, B and J).

Data sets are not decoded: they are written to disk as received, and success (0x0000) is returned when the instance is
in the store.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AllStoragePresentationContexts, _config, dimse_messages, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_RELEASE_RQ
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

from semiseg.errors import InputError
from server.gateway.application_entity import create_application_entity
from server.gateway.association_server import AssociationServer, DataSetFile
from server.gateway.audit import AuditLog
from server.gateway.commitment_scp import CommitmentProvider
from server.gateway.commitment_scu import CommitmentReports
from server.gateway.config import DimseListener, Sender
from server.gateway.instance_store import DiskFull, InstanceIdentity, InstanceStore, InvalidInstance
from server.gateway.rejections import RejectionLog
from server.gateway.study_tracker import StudyTracker
from server.gateway.tls import server_context

TRANSFER_SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    JPEG2000,
]
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
CALLED_TITLE, CALLING_TITLE, LIMIT = (1, 1, 7), (1, 1, 3), (2, 3, 2)  # result, source, reason (PS3.8 table 9-21)
UNLIMITED = 10**6
CLOSE_SECONDS = 5.0

_LOG = logging.getLogger("semiseg.gateway")


@dataclass
class _AssociationRecord:
    """Instances of an association.

    Attributes:
        taken, refused: Numbers of stored and refused instances.
        studies: Names of the studies of stored instances, and of refused instances whose study could be read.
        unplaced: Reasons for refused instances whose study could not be read, by announced UID.
        released: True once the sender has requested the release of the association.
        over: True once the connection is closed.
    """

    taken: int = 0
    refused: int = 0
    studies: set[str] = field(default_factory=set)
    unplaced: dict[str, str] = field(default_factory=dict)
    released: bool = False
    over: bool = False


class StorageSCP:
    """Listener that runs until it is closed."""

    def __init__(
        self,
        listener: DimseListener,
        title: str,
        instance_store: InstanceStore,
        commitments: CommitmentReports,
        audit: AuditLog,
        studies: StudyTracker,
        rejections: RejectionLog,
    ) -> None:
        """Start to listen.

        Args:
            listener: Configuration of the listener.
            title: AE title of the gateway.
            instance_store: Store of the instances.
            commitments: Reports of storage commitment from archives.
            audit: Audit log.
            studies: Tracker of studies, which is notified of the end of each association.
            rejections: Record of rejected associations and connections.

        Raises:
            InputError: The port is not available, or a TLS file cannot be used.
        """
        self._listener, self._title, self._instance_store, self._audit = listener, title, instance_store, audit
        self._studies, self._rejections = studies, rejections
        # Data sets are written directly to files in Python's temporary folder, which has to be `incoming`.
        _config.STORE_RECV_CHUNKED_DATASET = True
        dimse_messages.NamedTemporaryFile = DataSetFile  # type: ignore[attr-defined, assignment]
        # Without this, pynetdicom aborts the association if a UID is too long; the store refuses only the instance.
        _config.VALIDATORS["UI"] = lambda _: (True, "")
        ours = create_application_entity(title)
        ours.maximum_pdu_size = listener.pdu
        ours.maximum_associations = UNLIMITED  # pynetdicom would count connections without a request; see _requested
        ours.acse_timeout, ours.dimse_timeout = listener.acse_seconds, listener.dimse_seconds
        ours.network_timeout = listener.network_seconds
        for context in AllStoragePresentationContexts:
            assert context.abstract_syntax is not None
            ours.add_supported_context(context.abstract_syntax, TRANSFER_SYNTAXES)
        ours.add_supported_context(Verification)
        # Archives open an association for their reports, in which the gateway is the SCU (PS3.4 J.3.3).
        ours.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        tls = None if listener.tls is None else server_context(listener.tls)
        try:
            server = ours.make_server(
                (listener.host, listener.port),
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_ACCEPTED, self._accepted),
                    (evt.EVT_PDU_RECV, self._received),
                    (evt.EVT_C_ECHO, lambda _: SUCCESS),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_N_ACTION, CommitmentProvider(listener, title, instance_store).handle_action),
                    (evt.EVT_N_EVENT_REPORT, commitments.handle_event_report),
                    (evt.EVT_CONN_CLOSE, self._closed),
                ],
                server_class=AssociationServer,
                networks=_networks(listener.senders),
                associations=listener.associations,
                per_address=listener.max_associations_per_address(),
                refused=rejections.record,
            )
        except (OSError, OverflowError) as error:
            raise InputError(f"Port {listener.port} of {listener.host} is not available for DICOM ({error}).") from None
        assert isinstance(server, AssociationServer)
        server.tls, self._server = tls, server
        ours._servers.append(server)  # the shutdown of the server removes it from this list
        self._admitted: dict[Association, str] = {}
        self._brought: WeakKeyDictionary[Association, _AssociationRecord] = WeakKeyDictionary()
        self._storing, self._closing = 0, False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, name="dimse", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """TCP port of the listener."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening, and abort open associations; acknowledged instances are on disk.

        It takes a few seconds for any number of associations, whereas pynetdicom's own shutdown waits for each in turn.
        """
        self._closing = True
        self._server.shutdown()
        self._thread.join()
        there = self._server.active_associations
        for association in there:
            if association.is_established:
                association.abort(block=False)
        until = time.monotonic() + CLOSE_SECONDS
        while time.monotonic() < until and (self._storing or any(not _has_aborted(one) for one in there)):
            time.sleep(0.05)
        for association in there:
            association._kill = association.dul._kill_thread = True
            with suppress(AttributeError):  # closed already
                cast(Any, association.dul.socket)._shutdown_socket()

    def _requested(self, event: evt.Event) -> None:
        """Accept an association of a permitted sender; reject others and record the reason."""
        association = event.assoc
        request = association.requestor.primitive
        assert request is not None
        calling, called = str(request.calling_ae_title).strip(" "), str(request.called_ae_title).strip(" ")
        address = _address_of(association)
        verdict = self._verdict(calling, called, address, association)
        if verdict is None:
            return
        reason, sentence, code = verdict
        proposed = sorted({_class_name(one.abstract_syntax) for one in request.presentation_context_definition_list})
        self._rejections.record(reason, address, sentence, called=called, calling=calling, contexts=proposed)
        association.acse.send_reject(*code)
        evt.trigger(association, evt.EVT_REJECTED, {})
        association.kill()

    def _verdict(
        self, calling: str, called: str, address: str, association: Association
    ) -> tuple[str, str, tuple[int, int, int]] | None:
        """Return the reason, a sentence and the code if an association is to be rejected; None if it is accepted."""
        senders = self._listener.senders
        known = [sender for sender in senders if sender.ae_title == calling]
        if called != self._title:
            return "called title", f"the called AE title is not {self._title}", CALLED_TITLE
        if senders and not known:
            return "calling title", "the calling AE title is not among `senders`", CALLING_TITLE
        if senders and not any(_may_come_from(sender, address) for sender in known):
            return "address", "the address is not one of this sender's `addresses`", CALLING_TITLE
        with self._lock:
            self._admitted = {one: where for one, where in self._admitted.items() if one.is_alive()}
            if len(self._admitted) >= self._listener.associations:
                return "associations", f"{self._listener.associations} associations are open (`associations`)", LIMIT
            most = self._listener.max_associations_per_address()
            if sum(where == address for where in self._admitted.values()) >= most:
                return (
                    "associations of one address",
                    f"{most} associations from this address are open (`associations_per_address`)",
                    LIMIT,
                )
            self._admitted[association] = address
        return None

    def _accepted(self, event: evt.Event) -> None:
        """Record an association for which no proposed presentation context was accepted."""
        refused = sorted({_class_name(one.abstract_syntax) for one in event.assoc.rejected_contexts})
        if refused and not event.assoc.accepted_contexts:
            title = str(event.assoc.requestor.ae_title).strip()
            sentence = "none of the proposed presentation contexts is accepted"
            self._rejections.record(
                "contexts", _address_of(event.assoc), sentence, called=self._title, calling=title, contexts=refused
            )

    def _received(self, event: evt.Event) -> None:
        if isinstance(event.pdu, A_RELEASE_RQ):
            self._brought.setdefault(event.assoc, _AssociationRecord()).released = True

    def _store(self, event: evt.Event) -> int:
        """Store an instance; the returned status is one of PS3.4 table B.2-1."""
        association = event.assoc
        title = str(association.requestor.ae_title).strip()
        brought = self._brought.setdefault(association, _AssociationRecord())
        with self._lock:
            self._storing += 1
        try:
            status = self._taken(event, title, brought)
        finally:
            with self._lock:
                self._storing -= 1
        brought.taken += status == SUCCESS
        brought.refused += status != SUCCESS
        if brought.over:  # the connection was closed while the instance waited to be stored
            self._finish(association, brought, broken=not brought.released)
        return status

    def _taken(self, event: evt.Event, title: str, brought: _AssociationRecord) -> int:
        announced = str(getattr(event.request, "AffectedSOPInstanceUID", "") or "").strip()
        identity: InstanceIdentity | None = None
        try:
            if failed := getattr(event.request._dataset_file, "failed", None):
                raise failed
            path = Path(event.dataset_path)
            identity = self._instance_store.identify(path)
            if identity.instance != announced:
                raise InvalidInstance("The SOP Instance UID of the instance differs from the announced one.", identity)
            arrival = self._instance_store.add(path, title, identity, more_follows=True)
        except DiskFull as error:
            status, why = OUT_OF_RESOURCES, str(error)
        except InvalidInstance as error:
            status, why, identity = CANNOT_UNDERSTAND, str(error), error.identity
        except OSError as error:
            status, why = OUT_OF_RESOURCES, f"An instance could not be written ({error.strerror})."
        else:
            brought.studies.add(arrival.study)
            self._studies.transfer_started(arrival.study, id(event.assoc))
            if arrival.differs:
                self._audit.record(
                    "conflict",
                    sender=title,
                    study=arrival.study,
                    instance=arrival.instance,
                    attributes=arrival.attributes,
                )
            return SUCCESS
        _LOG.warning(
            "An instance from %s at %s was refused with 0x%04X: %s", title, _address_of(event.assoc), status, why
        )
        sentence = f"An instance from {title} was refused with 0x{status:04X}: {why}"
        if identity is None:
            brought.unplaced[announced] = sentence
        else:
            study = self._instance_store.record_missing(identity, sentence)
            brought.studies.add(study)
            self._studies.transfer_started(study, id(event.assoc))
        return status

    def _closed(self, event: evt.Event) -> None:
        association, title = event.assoc, str(event.assoc.requestor.ae_title).strip()
        brought = self._brought.setdefault(association, _AssociationRecord())
        message = association.dimse.message  # message that was being received when the connection closed
        unfinished = getattr(message, "_data_set_file", None)
        if unfinished is not None:
            unfinished.close()
            why = f"The transfer of an instance from {title} was interrupted."
            try:
                identity = self._instance_store.identify(Path(unfinished.name))
            except (InvalidInstance, OSError):  # interrupted before its study could be read
                assert message is not None
                brought.unplaced[str(message.command_set.get("AffectedSOPInstanceUID", ""))] = why
            else:
                study = self._instance_store.record_missing(identity, why)
                brought.studies.add(study)
                self._studies.transfer_started(study, id(association))
            Path(unfinished.name).unlink(missing_ok=True)
        with self._lock:
            self._admitted.pop(association, None)
        brought.over = True
        # The gateway aborts associations that are silent for too long; between two instances that is no interruption.
        silent = association._sent_abort and unfinished is None
        broken = not brought.released and not silent
        self._finish(association, brought, broken=broken)
        if brought.taken or brought.refused:
            self._audit.record(
                "received",
                sender=title,
                address=_address_of(association),
                instances=brought.taken,
                refused=brought.refused,
                ended="broken off" if broken else "released" if brought.released else "silent for too long",
            )

    def _finish(self, association: Association, brought: _AssociationRecord, *, broken: bool) -> None:
        """Record the end of an association for each of its studies."""
        if self._closing:
            return  # the marks of open transfers stay, so that the next process waits for the senders
        title = str(association.requestor.ae_title).strip()
        for study in brought.studies:
            for announced, why in brought.unplaced.items():
                self._instance_store.record_missing_uid(study, announced, why)
            if not broken:
                self._instance_store.transfer_ended(study, title)
        self._studies.transfer_ended(id(association), broken_by=title if broken else "")


def _has_aborted(association: Association) -> bool:
    """Return True if the abort was sent and the connection is closed (PS3.8 9.2, state 1), or no abort was needed."""
    return not association._sent_abort or association.dul.state_machine.current_state in ("Sta1", "Sta13")


def _class_name(syntax: object) -> str:
    """Return the name of a SOP class; an unknown one is not repeated."""
    name = UID(str(syntax)).name
    return str(name) if name != str(syntax) else "an unknown SOP class"


def _address_of(association: Association) -> str:
    information = association.requestor.address_info
    return "" if information is None else str(information.address)


def _networks(senders: Sequence[Sender]) -> list[Any] | None:
    """Return the networks of all senders; None if the address of a sender is not restricted."""
    if not senders or any(not sender.addresses for sender in senders):
        return None
    return [ipaddress.ip_network(address, strict=False) for sender in senders for address in sender.addresses]


def _may_come_from(sender: Sender, address: str) -> bool:
    found = ipaddress.ip_address(str(address).split("%")[0])
    return not sender.addresses or any(found in ipaddress.ip_network(one, strict=False) for one in sender.addresses)
