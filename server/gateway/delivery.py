"""Results to an archive, by C-STORE or STOW-RS: all of them, with its word for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from semiseg.errors import SemisegError
from server.gateway import c_store
from server.gateway.commitment_request import REQUEST_COMMITMENT as REQUEST_COMMITMENT
from server.gateway.commitment_request import Commitments as Commitments
from server.gateway.config import Destination
from server.gateway.outcome import Outcome


class NotDelivered(SemisegError):  # noqa: N818 - it is tried again
    """The archive has not all of it; its message says what it answered."""


def deliver(
    files: Sequence[Path],
    destination: Destination,
    title: str,
    commitments: Commitments,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Send files to an archive; again is harmless, since they have UIDs of their own.

    Args:
        files: DICOM files.
        destination: The archive.
        title: Our AE title.
        commitments: Reports of storage commitment from archives.
        stopped: Function that returns True once the delivery is stopped; asked now and then.

    Returns:
        The files that it has confirmed, those that it refused, and what is wrong with the destination as a whole.

    Raises:
        InputError: a token or a certificate of ours cannot be used.
        Cancelled: it was stopped.
    """
    if destination.dimse is not None:
        return c_store.send(files, destination, title, commitments, stopped)
    from server.gateway import stow_delivery

    return stow_delivery.send(files, destination, stopped)
