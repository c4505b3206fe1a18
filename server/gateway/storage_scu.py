"""Delivery of results to an archive by C-STORE, in a transfer syntax that it accepts."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from semiseg.errors import Cancelled
from server.gateway import dimse_statuses
from server.gateway.application_entity import AssociationFailed, NoContextAccepted, associate, create_application_entity
from server.gateway.commitment_scu import CommitmentReports, request_commitment
from server.gateway.delivery_result import DeliveryResult
from server.gateway.destinations import DimseDestination
from server.gateway.transfer_syntaxes import choose_syntax, offered_syntaxes, read_header, transcoded

MAX_BROKEN_ASSOCIATIONS = 3  # lost associations after which the remaining files wait for the next attempt

_LOG = logging.getLogger("semiseg.gateway")


class _Broken(Exception):  # noqa: N818 - handled here
    """The association was lost; ``silent`` is True if the response timed out."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent


def send(
    files: Sequence[Path],
    to: DimseDestination,
    title: str,
    commitments: CommitmentReports,
    stopped: Callable[[], bool],
) -> DeliveryResult:
    """Send files; a file that the archive refuses does not prevent the delivery of the others.

    Args:
        files: DICOM files, in the order in which they are sent.
        to: Archive.
        title: AE title of the gateway.
        commitments: Reports of storage commitment from archives.
        stopped: Function that returns True once the delivery is to stop; called before each file.

    Raises:
        InputError: The gateway's certificate cannot be used.
        Cancelled: The delivery was stopped.
    """
    return _Sending(files, to, title, commitments, stopped).outcome


def presentation_contexts(headers: Sequence[Dataset], to: DimseDestination) -> list[PresentationContext]:
    """Create a presentation context for each SOP class and transfer syntax, as only one is accepted per context."""
    pairs = dict.fromkeys(
        (one.SOPClassUID, syntax) for one in headers for syntax in offered_syntaxes(one.file_meta.TransferSyntaxUID)
    )
    found = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
    return [*found, build_context(StorageCommitmentPushModel)] if to.commitment else found


class _Sending:
    def __init__(
        self,
        files: Sequence[Path],
        to: DimseDestination,
        title: str,
        commitments: CommitmentReports,
        stopped: Callable[[], bool],
    ) -> None:
        self._seconds, self._to, self._commitments, self._stopped = to.answer_seconds, to, commitments, stopped
        self._headers = {file: read_header(file) for file in files}
        self._where = f"{to.ae_title} at {to.host}:{to.port}"
        self._ours = create_application_entity(title, seconds=to.connect_seconds)
        self._ours.acse_timeout = max(to.connect_seconds, min(30.0, to.answer_seconds))
        self._ours.dimse_timeout = self._ours.network_timeout = to.answer_seconds
        self.outcome = DeliveryResult()
        rest, breaks = list(files), 0
        while rest and not self.outcome.trouble:
            rest = self._attempt(rest)
            breaks += 1
            if breaks == MAX_BROKEN_ASSOCIATIONS and rest:
                self.outcome.trouble = f"{self._where} ended the association early {breaks} times."

    def _attempt(self, files: list[Path]) -> list[Path]:
        """Send files on one association; return the files that are left if it was lost."""
        handlers: list[evt.EventHandlerType] = []
        if self._to.commitment:
            handlers = [(evt.EVT_N_EVENT_REPORT, self._commitments.handle_event_report)]
        contexts = presentation_contexts([self._headers[file] for file in files], self._to)
        try:
            association = associate(self._ours, self._to, handlers, contexts=contexts)
        except NoContextAccepted:
            for file in files:
                self._refuse_kind(file)
            return []
        except AssociationFailed as why:
            self.outcome.trouble = f"{self._where} {why}."
            return []
        stored: list[Path] = []
        try:
            for number, file in enumerate(files):
                if self._stopped():
                    raise Cancelled("The delivery was stopped.")
                try:
                    if self._store(association, file):
                        stored.append(file)
                except _Broken as broken:
                    how = f"did not answer in {self._seconds:g} s" if broken.silent else "ended the association early"
                    if broken.silent:
                        self.outcome.trouble = f"{self._where} {how} to a C-STORE."
                    self.outcome.add_refused(
                        file, f"{self._where} {how} when it was sent a {_kind(self._headers[file])}."
                    )
                    self._settle(association, stored)
                    return files[number + 1 :]
            self._settle(association, stored)
        finally:
            if association.is_established:
                association.release()
        return []

    def _store(self, association: Association, file: Path) -> bool:
        header = self._headers[file]
        accepted = [
            UID(one.transfer_syntax[0])
            for one in association.accepted_contexts
            if one.abstract_syntax == header.SOPClassUID
        ]
        syntax = choose_syntax(header.file_meta.TransferSyntaxUID, accepted)
        if syntax is None:
            self._refuse_kind(file)
            return False
        since = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                converted = stack.enter_context(transcoded(file, syntax))
            except Exception as error:  # noqa: BLE001 - pydicom's decoders raise many kinds
                told = f"{self._where} accepts a {_kind(header)} as {syntax.name} only, and it cannot be converted"
                self.outcome.add_refused(file, f"{told} ({type(error).__name__}).")
                return False
            if not association.is_established:
                raise _Broken(silent=False)
            status = association.send_c_store(converted)
        if "Status" not in status:
            raise _Broken(silent=time.monotonic() - since >= 0.9 * self._seconds)
        # ErrorComment and OffendingElement are not repeated, because they may quote the instance.
        if not dimse_statuses.is_stored(status.Status):
            told = dimse_statuses.describe(status.Status)
            self.outcome.add_refused(file, f"{self._where} refused a {_kind(header)} with status {told}.")
            return False
        if status.Status != 0x0000:
            told = dimse_statuses.describe(status.Status)
            self.outcome.warnings.append(f"a {_kind(header)} was stored with status {told}")
            _LOG.warning("%s stored a %s with status %s", self._where, _kind(header), told)
        return True

    def _settle(self, association: Association, stored: Sequence[Path]) -> None:
        """Confirm the stored files, after storage commitment if it is configured."""
        why: dict[str, str] = {}
        if self._to.commitment and stored:
            if association.is_established:
                headers = [self._headers[file] for file in stored]
                why = request_commitment(association, headers, self._to, self._where, self._commitments)
            else:
                told = f"{self._where} ended the association before storage commitment could be requested."
                why = {str(self._headers[file].SOPInstanceUID): told for file in stored}
        for file in stored:
            sentence = why.get(str(self._headers[file].SOPInstanceUID))
            if sentence is None:
                self.outcome.add_confirmed(file)
            else:
                self.outcome.add_refused(file, sentence)

    def _refuse_kind(self, file: Path) -> None:
        header = self._headers[file]
        syntaxes = ", ".join(one.name for one in offered_syntaxes(header.file_meta.TransferSyntaxUID))
        self.outcome.add_refused(
            file,
            f"{self._where} does not accept {_kind(header)} (offered in {syntaxes}); allow this SOP class there, or "
            "omit its format from the destination's `output_formats`.",
        )


def _kind(header: Dataset) -> str:
    return UID(header.SOPClassUID).name
