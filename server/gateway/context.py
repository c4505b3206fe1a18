"""Objects of a gateway that most of its modules need, passed on together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.gateway.audit import AuditLog
from server.gateway.config import GatewayConfig
from server.gateway.instance_store import InstanceStore
from server.gateway.uid_hasher import UidHasher
from server.jobs.queue import Queue


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

    def series_name(self, uid: str) -> str:
        """Return the name of a series in logs and results: a keyed hash of its UID, or the UID with `reveal_uids`."""
        return uid if self.config.reveal_uids else self.hasher.hash(uid)
