"""Storage commitment as SCU (PS3.4 Annex J): requests, and reports on the same or another association."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance  # type: ignore[attr-defined]

from server.gateway import dimse_statuses
from server.gateway.destinations import DimseDestination

REQUEST_COMMITMENT = 1  # action type (PS3.4 table J.3-1)


class CommitmentReports:
    """Reports of storage commitment that archives send on any association, by transaction."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reports: dict[str, Dataset] = {}

    def add(self, information: Dataset) -> None:
        """Add the report of an archive (N-EVENT-REPORT, PS3.4 J.3.3)."""
        with self._changed:
            self._reports[str(information.get("TransactionUID", ""))] = information
            while len(self._reports) > 1000:  # reports that nothing waits for any more
                self._reports.pop(next(iter(self._reports)))
            self._changed.notify_all()

    def handle_event_report(self, event: evt.Event) -> tuple[int, None]:
        """Handle EVT_N_EVENT_REPORT of pynetdicom; calls :meth:`add`."""
        self.add(event.event_information)
        return 0x0000, None

    def wait(self, transaction: str, seconds: float) -> Dataset | None:
        """Wait for the report of a transaction; None if it was not received in time."""
        with self._changed:
            self._changed.wait_for(lambda: transaction in self._reports, seconds)
            return self._reports.pop(transaction, None)


def request_commitment(
    association: Association,
    headers: Sequence[Dataset],
    to: DimseDestination,
    where: str,
    commitments: CommitmentReports,
) -> dict[str, str]:
    """Request storage commitment for instances from an archive.

    Args:
        association: Association for which Storage Commitment Push was negotiated.
        headers: SOP Class UID and SOP Instance UID of each instance.
        to: Archive.
        where: Name of the archive in messages.
        commitments: Reports of storage commitment from archives.

    Returns:
        Reason for each instance without a commitment, as a sentence, by SOP Instance UID.
    """
    request = Dataset()
    request.TransactionUID = generate_uid(entropy_srcs=[secrets.token_hex(16)])
    request.ReferencedSOPSequence = [_reference(one) for one in headers]
    every = [str(one.SOPInstanceUID) for one in headers]
    try:
        status, _ = association.send_n_action(
            request, REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except ValueError:
        return dict.fromkeys(
            every, f"{where} does not support storage commitment; set `commitment: false` for it in the configuration."
        )
    if "Status" not in status:
        return dict.fromkeys(every, f"{where} did not answer the request for storage commitment.")
    if status.Status != 0x0000 and not dimse_statuses.is_warning(status.Status):
        told = dimse_statuses.describe(status.Status)
        return dict.fromkeys(every, f"{where} refused the request for storage commitment with status {told}.")
    report = commitments.wait(str(request.TransactionUID), to.commitment_seconds)
    if report is None:
        return dict.fromkeys(
            every,
            f"{where} sent no storage commitment report in {to.commitment_seconds:g} s; check that the gateway's "
            "address and port are configured there.",
        )
    failed = {
        str(one.get("ReferencedSOPInstanceUID", "")): int(one.get("FailureReason", 0x0110))
        for one in report.get("FailedSOPSequence") or ()
    }
    good = {str(one.get("ReferencedSOPInstanceUID", "")) for one in report.get("ReferencedSOPSequence") or ()}
    found = {}
    for uid in every:
        if uid in failed:
            found[uid] = f"{where} did not commit itself to an instance: {dimse_statuses.describe(failed[uid])}."
        elif uid not in good:
            found[uid] = f"{where} did not commit itself to an instance: it is missing from the report."
    return found


def _reference(header: Dataset) -> Dataset:
    one = Dataset()
    one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return one
