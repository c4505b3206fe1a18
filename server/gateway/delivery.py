"""Results to an archive, by C-STORE or STOW-RS: all of them, with its word for each."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance  # type: ignore[attr-defined]

from semiseg.errors import SemisegError
from server.gateway.config import Destination, DimseDestination, WebDestination
from server.gateway.entity import NotAssociated, associate, entity

REQUEST_COMMITMENT = 1  # action type (PS3.4 table J.3-1)
WARNINGS = frozenset({0xB000, 0xB006, 0xB007})  # stored all the same (PS3.4 table B.2-1)

_LOG = logging.getLogger("semiseg.gateway")


class NotDelivered(SemisegError):  # noqa: N818 - it is tried again
    """The archive has not all of it; its message says what it answered."""


class Commitments:
    """Reports of storage commitment that archives send, on whichever association, by transaction."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reports: dict[str, Dataset] = {}

    def report(self, information: Dataset) -> None:
        """An archive has reported (N-EVENT-REPORT, PS3.4 J.3.3)."""
        with self._changed:
            self._reports[str(information.get("TransactionUID", ""))] = information
            while len(self._reports) > 1000:  # of those that nobody waits for any more
                self._reports.pop(next(iter(self._reports)))
            self._changed.notify_all()

    def reported(self, event: evt.Event) -> tuple[int, None]:
        """The handler of pynetdicom for :meth:`report`."""
        self.report(event.event_information)
        return 0x0000, None

    def wait(self, transaction: str, seconds: float) -> Dataset | None:
        """The report of a transaction; None when it did not come in time."""
        with self._changed:
            self._changed.wait_for(lambda: transaction in self._reports, seconds)
            return self._reports.pop(transaction, None)


def deliver(files: Sequence[Path], destination: Destination, title: str, commitments: Commitments) -> int:
    """Send files to an archive; again is harmless, since they have UIDs of their own.

    Args:
        files: DICOM files.
        destination: the archive.
        title: our AE title.
        commitments: where reports of storage commitment arrive.

    Returns:
        How many it has confirmed: all of them.

    Raises:
        NotDelivered: it does not answer, or did not take all.
    """
    if destination.dimse is not None:
        return _by_dimse(files, destination.dimse, title, commitments)
    assert destination.web is not None
    return _by_web(files, destination.web)


def _by_dimse(files: Sequence[Path], to: DimseDestination, title: str, commitments: Commitments) -> int:
    headers = [pydicom.dcmread(file, specific_tags=["SOPClassUID", "SOPInstanceUID"]) for file in files]
    ours = entity(title)
    ours.dimse_timeout = ours.network_timeout = 120
    for sop_class, syntax in sorted({(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in headers}):
        ours.add_requested_context(sop_class, syntax)
    handlers: list[evt.EventHandlerType] = []
    if to.commitment:
        ours.add_requested_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_N_EVENT_REPORT, commitments.reported)]
    where = f"{to.ae_title} at {to.host}:{to.port}"
    try:
        association = associate(ours, to, handlers)
    except NotAssociated as why:
        raise NotDelivered(f"{where} {why}.") from None
    try:
        for file, header in zip(files, headers, strict=True):
            _store(association, file, header, where)
        if to.commitment:
            _commit(association, headers, to, where, commitments)
    finally:
        if association.is_established:
            association.release()
    return len(files)


def _store(association: Association, file: Path, header: Dataset, where: str) -> None:
    kind = UID(header.SOPClassUID).name
    try:
        status = association.send_c_store(file)
    except ValueError:
        raise NotDelivered(f"{where} does not take {kind}.") from None
    if "Status" not in status:
        raise NotDelivered(f"{where} broke the association off.")
    if status.Status in WARNINGS:
        _LOG.warning("%s took an instance with the warning 0x%04X", where, status.Status)
    elif status.Status != 0:
        comment = f" ({str(status.ErrorComment)[:64]})" if status.get("ErrorComment") else ""
        raise NotDelivered(f"{where} refused a {kind} with status 0x{status.Status:04X}{comment}.")


def _commit(
    association: Association, headers: Sequence[Dataset], to: DimseDestination, where: str, commitments: Commitments
) -> None:
    request = Dataset()
    request.TransactionUID = generate_uid(entropy_srcs=[secrets.token_hex(16)])
    request.ReferencedSOPSequence = [_reference(one) for one in headers]
    try:
        status, _ = association.send_n_action(
            request, REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except ValueError:
        raise NotDelivered(f"{where} does not do storage commitment; leave it out of the configuration.") from None
    if status.get("Status") != 0:
        raise NotDelivered(f"{where} did not take the request for storage commitment.")
    report = commitments.wait(str(request.TransactionUID), to.commitment_seconds)
    if report is None:
        raise NotDelivered(f"{where} has not reported on storage commitment in {to.commitment_seconds:g} s.")
    _require_all(headers, report, f"{where} did not commit itself to")


def _require_all(sent: Sequence[Dataset], answer: Dataset, words: str) -> None:
    """Every instance is in the answer's list of good ones, as reports of commitment and answers of STOW-RS have it."""
    if failed := answer.get("FailedSOPSequence"):
        reasons = sorted({f"0x{one.get('FailureReason', 0):04X}" for one in failed})
        raise NotDelivered(f"{words} {len(failed)} of {len(sent)} instance(s): {', '.join(reasons)}.")
    good = {str(one.ReferencedSOPInstanceUID) for one in answer.get("ReferencedSOPSequence") or ()}
    if missing := [one for one in sent if str(one.SOPInstanceUID) not in good]:
        raise NotDelivered(f"{words} {len(missing)} of {len(sent)} instance(s): they are not in its answer.")


def _reference(header: Dataset) -> Dataset:
    one = Dataset()
    one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return one


def _by_web(files: Sequence[Path], to: WebDestination) -> int:
    from requests import RequestException

    from server.gateway.dicomweb import archive_at, said

    objects = [pydicom.dcmread(file) for file in files]
    try:
        answer = archive_at(to.url, to.token).store_instances(objects)
    except RequestException as error:
        raise NotDelivered(f"{to.url} did not take it ({said(error)}).") from None
    _require_all(objects, answer, f"{to.url} did not take")
    return len(objects)
