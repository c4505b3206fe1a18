"""Delivery of results to an archive, by C-STORE or STOW-RS, with a confirmation for each file."""

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
    """Send files to an archive; sending them again is harmless, because each file has a UID of its own.

    Args:
        files: DICOM files.
        destination: The archive.
        title: AE title of the gateway.
        commitments: Reports of storage commitment from archives.
        stopped: Function that returns True once the delivery is to stop; called repeatedly.

    Returns:
        The confirmed files, the refused files, and the problem of the destination as a whole, if any.

    Raises:
        InputError: A token or a certificate of the gateway cannot be used.
        Cancelled: The delivery was stopped.
    """
    if destination.dimse is not None:
        return storage_scu.send(files, destination, title, commitments, stopped)
    from server.gateway import stow_client

    return stow_client.send(files, destination, stopped)
