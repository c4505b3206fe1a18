"""Results to an archive, by C-STORE or STOW-RS: all of them, with its word for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from server.gateway import storage_scu
from server.gateway.commitment_scu import REQUEST_COMMITMENT as REQUEST_COMMITMENT
from server.gateway.commitment_scu import CommitmentReports as CommitmentReports
from server.gateway.config import Destination
from server.gateway.delivery_result import DeliveryResult


def deliver_files(
    files: Sequence[Path],
    destination: Destination,
    title: str,
    commitments: CommitmentReports,
    stopped: Callable[[], bool] = lambda: False,
) -> DeliveryResult:
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
        return storage_scu.send(files, destination, title, commitments, stopped)
    from server.gateway import stow_client

    return stow_client.send(files, destination, stopped)
