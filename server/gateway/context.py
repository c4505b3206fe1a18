"""The parts of a gateway that most of its work needs, handed on together."""

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
    """The configuration, and where the one process that works in the state folder keeps things.

    Attributes:
        config: Configuration.
        queue: Queue of all jobs.
        instance_store: Instances on the disk.
        hasher: Keyed hashes of UIDs.
        audit: Audit log.
        wake: Function that tells the workers of a kind of a new job.
    """

    config: GatewayConfig
    queue: Queue
    instance_store: InstanceStore
    hasher: UidHasher
    audit: AuditLog
    wake: Callable[[str], None]

    def series_name(self, uid: str) -> str:
        """Name of a series in logs and results: a keyed hash of its UID, or the UID if the configuration reveals it."""
        return uid if self.config.reveal_uids else self.hasher.hash(uid)
