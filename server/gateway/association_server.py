"""Connections of the DIMSE listener: TLS, maximum PDU sizes, limits for each address, and data sets written to disk."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import secrets
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer
from pynetdicom.transport import RequestHandler as Requests

from server.gateway.application_entity import abort_on_invalid_message
from server.gateway.reactor_pauses import make_pauses_reliable

MAX_CONTROL_PDU_BYTES = 2**20  # a request of 128 contexts with all supported syntaxes has a tenth
HANDSHAKE_SECONDS = 10.0
# Connections beyond the permitted associations, on which an association request is rejected with the reason that the
# limit is reached. One address may have fewer of them than there are, so that it cannot use all.
IDLE_CONNECTIONS, IDLE_CONNECTIONS_PER_ADDRESS = 384, 256
A_ASSOCIATE_RQ = 0x01  # PDU type of an A-ASSOCIATE-RQ (PS3.8 table 9-11)

_LOG = logging.getLogger("semiseg.gateway")
RejectionCallback = Callable[..., None]


class AssociationServer(ThreadedAssociationServer):
    """Server that no single client can block: TLS handshakes run in separate threads, and the PDU size is limited."""

    tls: ssl.SSLContext | None = None
    # The system drops connections beyond this backlog, and a scanner would then wait for half a minute.
    request_queue_size = 128

    def __init__(
        self,
        *args: Any,
        networks: Sequence[Any] | None,
        associations: int,
        per_address: int,
        refused: RejectionCallback,
        **options: Any,
    ) -> None:
        """Start to listen.

        Args:
            args, options: Arguments of pynetdicom's server.
            networks: Networks from which connections are accepted; None for all.
            associations, per_address: Maximum numbers of associations, in all and from one address.
            refused: Function that is called for each refused connection with the reason, the address and a sentence.
        """
        self._networks, self.refused = networks, refused
        self._most, self._most_of_one = associations + IDLE_CONNECTIONS, per_address + IDLE_CONNECTIONS_PER_ADDRESS
        self._connections: Counter[str] = Counter()
        self._lock = threading.Lock()
        options["request_handler"] = _Request
        super().__init__(*args, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return True if the address is permitted and the limits of connections are not reached."""
        address = str(client_address[0])
        if self._networks is not None:
            found = ipaddress.ip_address(address.split("%")[0])
            if not any(found in network for network in self._networks):
                self.refused("address", address, "no sender has this address")
                return False
        active = Counter(_peer_of(one) for one in self.active_associations)
        if active.total() > self._most:
            self.refused("connections", address, "too many connections are open")
            return False
        if active[address] > self._most_of_one:
            self.refused("connections of one address", address, "it has too many connections open")
            return False
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the TLS handshake and handle the connection; called in the thread of the connection."""
        if self.tls is not None:
            request.settimeout(HANDSHAKE_SECONDS)
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except (OSError, ssl.SSLError) as error:
                self.refused("tls", str(client_address[0]), f"the TLS handshake failed ({error})")
                self.shutdown_request(request)
                return
        request.settimeout(self.ae.network_timeout)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the failure of a connection; others are not affected."""
        _LOG.warning("A connection from %s failed", client_address[0], exc_info=True)


class _Request(Requests):
    """One connection."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        address = str(self.client_address[0])
        # The log shows the thread's name instead of the text of pynetdicom, which is withheld.
        association.name, association.dul.name = f"AcceptorThread@{address}", f"DUL@{address}"
        connection = association.dul.socket
        assert connection is not None
        # pynetdicom reads any length that a peer announces, in pieces of 4 kB.
        connection.recv = partial(_read, connection, max(self.ae.maximum_pdu_size, MAX_CONTROL_PDU_BYTES))  # type: ignore[method-assign]
        assert isinstance(self.server, AssociationServer)
        decode = partial(_decoded, association.dul._decode_pdu, address, self.server.refused)
        association.dul._decode_pdu = decode  # type: ignore[method-assign]
        make_pauses_reliable(association)
        abort_on_invalid_message(association, partial(self.server.refused, "not understood", address))
        return association


def _peer_of(association: Association) -> str:
    return association.name.partition("@")[2]


def _decoded(decode: Callable[[bytearray], Any], address: str, refused: RejectionCallback, pdu: bytearray) -> Any:
    """Decode a PDU; record the AE titles of an association request that cannot be decoded."""
    try:
        return decode(pdu)
    except Exception:
        if pdu[0] == A_ASSOCIATE_RQ:
            called, calling = bytes(pdu[10:26]), bytes(pdu[26:42])
            refused(
                "not understood",
                address,
                "its association request violates PS3.8",
                called=printable_title(called),
                calling=printable_title(calling),
            )
        else:
            refused("not understood", address, f"a PDU of type 0x{pdu[0]:02X} violates PS3.8")
        raise


def printable_title(title: bytes) -> str:
    """Return an AE title as received, with control characters escaped."""
    return repr(title.rstrip(b" "))[2:-1]


def _read(connection: AssociationSocket, largest: int, count: int) -> bytearray:
    """Read exactly ``count`` bytes, or fewer if the connection ends.

    Raises:
        OSError: A larger PDU than permitted was announced; the error ends the connection.
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


class DataSetFile:
    """File that a data set is written to while it is received, as a replacement of pynetdicom's NamedTemporaryFile.

    pynetdicom aborts the association when the disk is full. Here the rest of the data set is discarded instead, and
    `failed` holds the error, so that the instance is answered with a status (PS3.4 table B.2-1, A7xx).

    Attributes:
        name: Path of the file, as text.
        failed: Error while writing the file; None if there was none.
    """

    def __init__(self, **_: Any) -> None:
        """Open a file in Python's temporary folder."""
        self.name = str(Path(tempfile.gettempdir()) / f"store-{secrets.token_hex(8)}.dcm")
        self.failed: OSError | None = None
        self._file: BinaryIO | None = None
        try:
            self._file = Path(self.name).open("xb")  # noqa: SIM115 - closed after the data set was received
        except OSError as error:
            self.failed = error

    @property
    def file(self) -> DataSetFile:
        """Return the object that pynetdicom flushes."""
        return self

    def write(self, data: bytes) -> int:
        """Write data, or discard it after an error."""
        self._tried(lambda file: file.write(data))
        return len(data)

    def flush(self) -> None:
        """Write buffered data to the file."""
        self._tried(lambda file: file.flush())

    def close(self) -> None:
        """Close the file."""
        self._tried(lambda file: file.close())

    def _tried(self, action: Callable[[BinaryIO], object]) -> None:
        if self._file is None:
            return
        try:
            action(self._file)
        except OSError as error:
            self.failed = error
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            Path(self.name).unlink(missing_ok=True)  # frees the space for other instances
