"""Selection of the scheduled workitems to claim, their order, and the reasons why others are not claimed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from server.gateway.config import PolledArchive
from server.gateway.instance_store import DiskFull, InstanceStore
from server.gateway.uid_hasher import UidHasher
from server.gateway.ups_claims import Claims
from server.gateway.ups_client import Json, sequence_items
from server.gateway.ups_config import Worklist
from server.gateway.ups_workitem import UnusableInputs, Workitem

LOST_SECONDS = 60.0  # seconds for which a workitem that another performer claimed is ignored


class WorkitemCandidate(NamedTuple):
    """Workitem to claim.

    Attributes:
        uid: SOP Instance UID.
        name: Name of the claim.
        step: Index of the configured step.
    """

    uid: str
    name: str
    step: int


class WorkitemSelector:
    """Selects workitems from the results of a search; used by the thread of one worklist.

    Attributes:
        passed_over: Reasons why workitems of a configured step are not claimed, by name of the claim.
        disk_full: Reason why nothing is claimed at present; "" if there is none.
    """

    def __init__(
        self,
        worklist: Worklist,
        archives: Sequence[tuple[PolledArchive, Sequence[str]]],
        instance_store: InstanceStore,
        hasher: UidHasher,
        claims: Claims,
    ) -> None:
        """Configure the selection.

        Args:
            worklist: Configuration of the worklist.
            archives: Archives of inputs, each with the AE titles that stand for it.
            instance_store: Store of the instances, whose free disk space is checked.
            hasher: Keyed hashes of UIDs.
            claims: Claimed workitems of all worklists.
        """
        self._worklist, self._archives, self._instance_store = worklist, archives, instance_store
        self._hasher, self._claims = hasher, claims
        self._lost: dict[str, float] = {}
        self.passed_over: dict[str, str] = {}
        self.disk_full = ""

    def name_of(self, uid: str) -> str:
        """Return the name of the claim of a workitem."""
        return self._hasher.hash(f"{self._worklist.url} {uid}")

    def mark_lost(self, name: str) -> None:
        """Ignore a workitem for a while, because another performer claimed it, even if the manager still lists it."""
        self._lost[name] = time.monotonic() + max(LOST_SECONDS, 2 * self._worklist.every_seconds)

    def candidates(self, documents: Sequence[Json]) -> list[WorkitemCandidate]:
        """Return the workitems to claim, by priority and then by scheduled start."""
        moment = time.monotonic()
        self._lost = {name: until for name, until in self._lost.items() if until > moment}
        self.disk_full, passed = "", dict[str, str]()
        try:
            self._instance_store.require_free_space()
        except DiskFull:
            self.disk_full = "No workitem is claimed, because the disk is nearly full."
            return []
        found = []
        for item in sorted(
            (Workitem.from_json(one) for one in documents), key=lambda item: (item.priority, item.start)
        ):
            step, name = item.find_step(self._worklist), self.name_of(item.uid)
            if step is None or item.state not in ("", "SCHEDULED") or self._claims.has(name) or name in self._lost:
                continue
            if sequence_items(item.document, "InputInformationSequence"):  # a search need not return it
                try:
                    item.inputs(self._archives)
                except UnusableInputs as error:
                    passed[name] = f"The gateway cannot perform it: {error}"
                    continue
            found.append(WorkitemCandidate(item.uid, name, step))
        self.passed_over = passed
        return found
