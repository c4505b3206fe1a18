"""Storage commitment as SCP (PS3.4 Annex J): stored instances are reported as committed, others as failed."""

from __future__ import annotations

import logging
import threading

from pydicom.dataset import Dataset
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from server.gateway.application_entity import AssociationFailed, associate, create_application_entity
from server.gateway.commitment_scu import REQUEST_COMMITMENT
from server.gateway.config import DimseListener
from server.gateway.config_types import DimseNode
from server.gateway.instance_store import InstanceStore

SUCCESS, NO_SUCH_ACTION, PROCESSING_FAILURE, NO_SUCH_INSTANCE = 0x0000, 0x0123, 0x0110, 0x0112

_LOG = logging.getLogger("semiseg.gateway")


class CommitmentProvider:
    """Handles requests for storage commitment."""

    def __init__(self, listener: DimseListener, title: str, instance_store: InstanceStore) -> None:
        """Configure the service.

        Args:
            listener: Configuration of the listener, whose senders define where reports are sent.
            title: AE title of the gateway.
            instance_store: Store of the instances.
        """
        self._listener, self._title, self._instance_store = listener, title, instance_store

    def handle_action(self, event: evt.Event) -> tuple[int, None]:
        """Handle a request for storage commitment (PS3.4 J.3.2); the report is sent by a thread of its own."""
        if event.action_type != REQUEST_COMMITMENT:
            return NO_SUCH_ACTION, None
        try:
            asked = event.action_information
            transaction, references = asked.TransactionUID, list(asked.ReferencedSOPSequence)
        except Exception:  # noqa: BLE001 - pydicom raises many kinds for a damaged data set
            return PROCESSING_FAILURE, None
        report = Dataset()
        report.TransactionUID = transaction
        here, missing = [], []
        for one in references:
            item = Dataset()
            item.ReferencedSOPClassUID = one.get("ReferencedSOPClassUID", "")
            item.ReferencedSOPInstanceUID = one.get("ReferencedSOPInstanceUID", "")
            if self._instance_store.has_instance(str(item.ReferencedSOPInstanceUID)):
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
        to = next((one.commitment for one in self._listener.senders if one.ae_title == title and one.commitment), None)
        try:
            if to is None:
                if association.is_established:
                    _send_report(association, report, kind)
                return
            ours = create_application_entity(self._title)
            ours.add_requested_context(StorageCommitmentPushModel)
            role = build_role(StorageCommitmentPushModel, scp_role=True)
            other = associate(ours, DimseNode(host=to[0], port=to[1], ae_title=title), roles=[role])
            try:
                _send_report(other, report, kind)
            finally:
                other.release()
        except AssociationFailed as why:
            _LOG.warning("Storage commitment could not be reported to %s, because it %s", title, why)
        except (OSError, RuntimeError, ValueError) as error:
            _LOG.warning("Storage commitment could not be reported to %s (%s)", title, type(error).__name__)


def _send_report(association: Association, report: Dataset, kind: int) -> None:
    association.send_n_event_report(report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
