"""The DIMSE door: C-ECHO, C-STORE and storage commitment as their provider (PS3.4 annexes A, B and J).

Nothing is decoded here: what a sender writes goes to the disk as it comes, and it is told success (0x0000) when the
instance is there under its name.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
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
from pynetdicom import AllStoragePresentationContexts, _config, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer
from pynetdicom.transport import RequestHandler as Requests

from semiseg.errors import InputError
from server.gateway.audit import Audit
from server.gateway.config import DimseDestination, DimseDoor, Sender
from server.gateway.delivery import REQUEST_COMMITMENT, Commitments
from server.gateway.entity import NotAssociated, associate, entity
from server.gateway.inbox import DiskFull, Inbox, NotOurs
from server.gateway.tls import server_context

SYNTAXES = [
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
NO_SUCH_ACTION, PROCESSING_FAILURE, NO_SUCH_INSTANCE = 0x0123, 0x0110, 0x0112
OTHER_PDUS = 2**20  # bytes; an association request of 128 contexts with all our syntaxes has a tenth
HANDSHAKE_SECONDS = 10.0
SILENT = 256  # connections beyond the associations that are allowed: they are told so, if they ask for one

_LOG = logging.getLogger("semiseg.gateway")


class Node:
    """Listens until it is closed."""

    def __init__(self, door: DimseDoor, title: str, inbox: Inbox, commitments: Commitments, audit: Audit) -> None:
        """Listen.

        Args:
            door: the configuration.
            title: our AE title.
            inbox: where instances go.
            commitments: told of what archives report to us.
            audit: told who sent how many.

        Raises:
            InputError: the port cannot be had, or a file of TLS cannot be used.
        """
        self._door, self._title, self._inbox, self._audit = door, title, inbox, audit
        # Data sets go to files from their first byte on, in Python's temporary folder, which has to be `incoming`.
        _config.STORE_RECV_CHUNKED_DATASET = True
        ours = entity(title)
        ours.maximum_pdu_size = door.pdu
        ours.maximum_associations = door.associations
        ours.require_called_aet = True
        ours.require_calling_aet = [sender.ae_title for sender in door.senders]
        ours.acse_timeout, ours.dimse_timeout = door.acse_seconds, door.dimse_seconds
        ours.network_timeout = door.network_seconds
        for context in AllStoragePresentationContexts:
            assert context.abstract_syntax is not None
            ours.add_supported_context(context.abstract_syntax, SYNTAXES)
        ours.add_supported_context(Verification)
        # For the reports of archives we are the user of the service, and they open the association (PS3.4 J.3.3).
        ours.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        tls = None if door.tls is None else server_context(door.tls)
        try:
            server = ours.make_server(
                (door.host, door.port),
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_C_ECHO, lambda _: SUCCESS),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_N_ACTION, self._commit),
                    (evt.EVT_N_EVENT_REPORT, commitments.reported),
                    (evt.EVT_CONN_CLOSE, self._closed),
                ],
                server_class=_Door,
                networks=_networks(door.senders),
            )
        except (OSError, OverflowError) as error:
            raise InputError(f"Port {door.port} of {door.host} cannot be had for DICOM ({error}).") from None
        assert isinstance(server, _Door)
        server.tls, self._server = tls, server
        ours._servers.append(server)  # so that its shutdown can take it out again
        self._entity = ours
        self._stored: dict[Association, list[int]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, name="dimse", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def associations(self) -> int:
        """How many are open."""
        return len(self._server.active_associations)

    def close(self) -> None:
        """Listen no more, and abort the associations that are open; what was acknowledged is on the disk."""
        self._entity.shutdown()
        self._thread.join()

    def _requested(self, event: evt.Event) -> None:
        """Reject an AE title that comes from an address which is not its own."""
        association = event.assoc
        title = str(getattr(association.requestor.primitive, "calling_ae_title", "")).strip()
        known = [sender for sender in self._door.senders if sender.ae_title == title]
        address = _address_of(association)
        if known and not any(_may_come_from(sender, address) for sender in known):
            _LOG.warning("%s may not come from %s", title, address)
            association.acse.send_reject(0x01, 0x01, 0x03)  # calling AE title not recognised
            association.kill()

    def _store(self, event: evt.Event) -> int:
        association = event.assoc
        title = str(association.requestor.ae_title).strip()
        try:
            announced = str(getattr(event.request, "AffectedSOPInstanceUID", ""))
            identity = self._inbox.identify(Path(event.dataset_path))
            if identity.instance != announced:
                raise NotOurs("The instance is another one than it was announced as.")
            arrival = self._inbox.take(Path(event.dataset_path), title, identity)
        except DiskFull as error:
            _LOG.error("%s", error)
            return self._count(association, OUT_OF_RESOURCES)
        except NotOurs as error:
            _LOG.warning("%s sent something that is refused: %s", title, error)
            return self._count(association, CANNOT_UNDERSTAND)
        except OSError as error:
            _LOG.error("An instance could not be written (%s)", error.strerror)
            return self._count(association, OUT_OF_RESOURCES)
        if arrival.differs:
            self._audit.tell("conflict", sender=title, study=arrival.study, instance=arrival.instance)
        return self._count(association, SUCCESS)

    def _count(self, association: Association, status: int) -> int:
        with self._lock:
            counts = self._stored.setdefault(association, [0, 0])
            counts[0 if status == SUCCESS else 1] += 1
        return status

    def _closed(self, event: evt.Event) -> None:
        unfinished = getattr(event.assoc.dimse.message, "_data_set_file", None)  # what the connection broke off in
        if unfinished is not None:
            unfinished.close()
            Path(unfinished.name).unlink(missing_ok=True)
        with self._lock:
            counts = self._stored.pop(event.assoc, None)
        if counts is not None:
            requestor = event.assoc.requestor
            self._audit.tell(
                "received",
                sender=str(requestor.ae_title).strip(),
                address=_address_of(event.assoc),
                instances=counts[0],
                refused=counts[1],
            )

    def _commit(self, event: evt.Event) -> tuple[int, None]:
        """Storage commitment is asked for (PS3.4 J.3.2): the report follows by itself."""
        if event.action_type != REQUEST_COMMITMENT:
            return NO_SUCH_ACTION, None
        try:
            asked = event.action_information
            transaction, references = asked.TransactionUID, list(asked.ReferencedSOPSequence)
        except Exception:  # noqa: BLE001 - pydicom has many ways to fail on a data set, and the sender has one answer
            return PROCESSING_FAILURE, None
        report = Dataset()
        report.TransactionUID = transaction
        here, missing = [], []
        for one in references:
            item = Dataset()
            item.ReferencedSOPClassUID = one.get("ReferencedSOPClassUID", "")
            item.ReferencedSOPInstanceUID = one.get("ReferencedSOPInstanceUID", "")
            if self._inbox.has(str(item.ReferencedSOPInstanceUID)):
                here.append(item)
            else:
                item.FailureReason = NO_SUCH_INSTANCE
                missing.append(item)
        if here:
            report.ReferencedSOPSequence = here
        if missing:
            report.FailedSOPSequence = missing
        threading.Thread(
            target=self._report, args=(event.assoc, report, 2 if missing else 1), name="commitment", daemon=True
        ).start()
        return SUCCESS, None

    def _report(self, association: Association, report: Dataset, kind: int) -> None:
        title = str(association.requestor.ae_title).strip()
        to = next((one.commitment for one in self._door.senders if one.ae_title == title and one.commitment), None)
        try:
            if to is None:
                if association.is_established:
                    _send_report(association, report, kind)
                return
            ours = entity(self._title)
            ours.add_requested_context(StorageCommitmentPushModel)
            role = build_role(StorageCommitmentPushModel, scp_role=True)
            other = associate(ours, DimseDestination(host=to[0], port=to[1], ae_title=title), roles=[role])
            try:
                _send_report(other, report, kind)
            finally:
                other.release()
        except NotAssociated as why:
            _LOG.warning("Storage commitment could not be reported to %s, which %s", title, why)
        except (OSError, RuntimeError, ValueError) as error:
            _LOG.warning("Storage commitment could not be reported to %s (%s)", title, type(error).__name__)


def _send_report(association: Association, report: Dataset, kind: int) -> None:
    association.send_n_event_report(report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)


class _Door(ThreadedAssociationServer):
    """A server that no single client can hold up: handshakes are made beside the others, and PDUs have a size."""

    tls: ssl.SSLContext | None = None
    # Beyond it the system drops what comes, and a scanner that comes in a crowd waits for half a minute.
    request_queue_size = 128

    def __init__(self, *args: Any, networks: Sequence[Any] | None, **options: Any) -> None:
        self._networks = networks
        options["request_handler"] = _Request
        super().__init__(*args, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether somebody may come from this address, and there are not too many already that say nothing."""
        if len(self.active_associations) > self.ae.maximum_associations + SILENT:
            return False
        if self._networks is None:
            return True
        address = ipaddress.ip_address(str(client_address[0]).split("%")[0])
        return any(address in network for network in self._networks)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the thread of this connection."""
        if self.tls is not None:
            request.settimeout(HANDSHAKE_SECONDS)
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except (OSError, ssl.SSLError) as error:
                _LOG.warning("A connection from %s was no TLS that is wanted (%s)", client_address[0], error)
                self.shutdown_request(request)
                return
        request.settimeout(self.ae.network_timeout)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed concerns nobody else."""
        _LOG.warning("A connection from %s failed", client_address[0], exc_info=True)


class _Request(Requests):
    """One connection."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        connection = association.dul.socket
        assert connection is not None
        # pynetdicom reads whatever length a peer announces, in pieces of 4 kB.
        connection.recv = partial(_read, connection, max(self.ae.maximum_pdu_size, OTHER_PDUS))  # type: ignore[method-assign]
        return association


def _read(connection: AssociationSocket, largest: int, count: int) -> bytearray:
    """Exactly so many bytes, or fewer where the connection ends.

    Raises:
        OSError: more than a PDU may have, which ends the connection.
    """
    if count > largest:
        _LOG.warning("A PDU of %d bytes was announced; the connection is closed", count)
        raise OSError("The PDU is larger than was agreed.")
    assert connection.socket is not None
    found = bytearray(count)
    view, done = memoryview(found), 0
    while done < count:
        read = connection.socket.recv_into(view[done:])
        if not read:
            break
        done += read
    view.release()
    del found[done:]
    return found


def _address_of(association: Association) -> str:
    information = association.requestor.address_info
    return "" if information is None else str(information.address)


def _networks(senders: Sequence[Sender]) -> list[Any] | None:
    """All networks from which anybody may come; None where one may come from everywhere."""
    if not senders or any(not sender.addresses for sender in senders):
        return None
    return [ipaddress.ip_network(address, strict=False) for sender in senders for address in sender.addresses]


def _may_come_from(sender: Sender, address: str) -> bool:
    found = ipaddress.ip_address(str(address).split("%")[0])
    return not sender.addresses or any(found in ipaddress.ip_network(one, strict=False) for one in sender.addresses)
