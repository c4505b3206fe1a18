"""Objects of a gateway that most of its modules need, passed on together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.gateway.audit import AuditLog
from server.gateway.config import GatewayConfig
from server.gateway.instance_store import InstanceStore
from server.gateway.job_kinds import RESULTS_FOLDER
from server.gateway.uid_hasher import UidHasher
from server.jobs.queue import Queue
from server.jobs.worker import JobPostponed

RECHECK_SECONDS = 1.0  # seconds after which a job checks again whether another job has ended
CONFLICT_RECHECK_SECONDS = 30.0  # seconds after which a job checks again whether an operator has decided


@dataclass(frozen=True)
class GatewayContext:
    """Configuration and shared objects of the one process that owns the state folder.

    Attributes:
        config: Configuration.
        queue: Queue of all jobs.
        instance_store: Instances on the disk.
        hasher: Keyed hashes of UIDs.
        audit: Audit log.
        wake: Function that wakes the workers of a kind after a new job was added.
    """

    config: GatewayConfig
    queue: Queue
    instance_store: InstanceStore
    hasher: UidHasher
    audit: AuditLog
    wake: Callable[[str], None]

    @property
    def results(self) -> Path:
        """Folder of the results, with a folder for each job of the kind `segment`."""
        return self.config.state / RESULTS_FOLDER

    def require_one_patient(self, study: str) -> None:
        """Postpone a job while an operator has to decide which patient its study belongs to.

        Raises:
            JobPostponed: The study has instances of two patients, and the configuration holds such studies.
        """
        if self.config.completeness.patients == "hold" and self.instance_store.is_of_two_patients(study):
            raise JobPostponed(
                "The study has instances of two patients, and waits for a decision.", after=CONFLICT_RECHECK_SECONDS
            )

    def series_name(self, uid: str) -> str:
        """Return the name of a series in logs and results: a keyed hash of its UID, or the UID with `reveal_uids`."""
        return uid if self.config.reveal_uids else self.hasher.hash(uid)
