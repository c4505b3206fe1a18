"""Workitems that the gateway has claimed or may have claimed: a file for each, until the manager has confirmed its end.

    worklists/NAME.json    mode 600, because it holds the Transaction UID, which gives control over the workitem

NAME is a keyed hash of the manager's address and the workitem's UID. A file is written before the claim is sent, so
that a gateway that is killed in between still knows the Transaction UID.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semiseg.system.durable_files import atomic_file

CLAIMS_FOLDER = "worklists"
WORKITEM_MARK = "workitem"  # an empty file in each folder among the studies that holds inputs of a workitem
ClaimStage = Literal["claiming", "performing", "stopping", "ending"]
STAGE_DESCRIPTIONS: dict[ClaimStage, str] = {
    "claiming": "is being claimed",
    "performing": "is in progress",
    "stopping": "is being stopped",
    "ending": "waits until the manager has confirmed its end",
}

_LOG = logging.getLogger("semiseg.gateway")


@dataclass
class Claim:
    """Workitem that this gateway has claimed or may have claimed.

    Attributes:
        name: Name of the claim, and of the folder of its inputs among the studies.
        worklist: Name of the worklist.
        url: Address of the manager when the workitem was claimed.
        uid: SOP Instance UID of the workitem.
        transaction: Transaction UID.
        step: Configured step, as JSON; the work is not continued for a step that was changed in the configuration.
        stage: Current stage of the claim.
        since: Unix seconds at which the claim began.
        codes: Scheduled Workitem Code Sequence, as (value, scheme, meaning).
        started: Performed Procedure Step Start DateTime.
        ended: Performed Procedure Step End DateTime, "" before the end.
        asked: True once a request to claim was sent whose response may have been lost.
        progress: Percentage and description that were last reported to the manager.
        end: Final state to reach: ``COMPLETED`` or ``CANCELED``; "" before it is known.
        reason: Reason of a cancellation: code value, code meaning, sentence.
        missed: Number of consecutive requests for which the manager did not know the workitem.
        refused: Number of consecutive requests that the manager refused.
        trouble: Problem of the workitem, as a sentence; "" if there is none.
    """

    name: str
    worklist: str
    url: str
    uid: str
    transaction: str
    step: str
    stage: ClaimStage = "claiming"
    since: float = field(default_factory=time.time)
    codes: list[list[str]] = field(default_factory=list)
    started: str = ""
    ended: str = ""
    asked: bool = False
    progress: list[Any] = field(default_factory=list)
    end: str = ""
    reason: list[str] = field(default_factory=list)
    missed: int = 0
    refused: int = 0
    trouble: str = ""


class Claims:
    """Claims and their files; thread-safe, for the one process that owns the state folder."""

    def __init__(self, state: Path) -> None:
        """Read the claims of a former process. A file that cannot be read is kept, and logged."""
        self._folder = state / CLAIMS_FOLDER
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._claims = {claim.name: claim for claim in read_claims(state)}

    def all(self) -> list[Claim]:
        """Return the claims, oldest first."""
        with self._lock:
            return sorted(self._claims.values(), key=lambda claim: claim.since)

    def has(self, name: str) -> bool:
        """Return True if there is a claim with this name."""
        with self._lock:
            return name in self._claims

    def write(self, claim: Claim) -> None:
        """Write the present state of a claim; it is on the disk when this returns.

        Raises:
            OSError: The file cannot be written.
        """
        with atomic_file(self._folder / f"{claim.name}.json", private=True) as stream:
            stream.write(json.dumps(dataclasses.asdict(claim)).encode())
        with self._lock:
            self._claims[claim.name] = claim

    def remove(self, claim: Claim) -> None:
        """Delete a claim, because the workitem has ended or belongs to another performer."""
        (self._folder / f"{claim.name}.json").unlink(missing_ok=True)
        with self._lock:
            self._claims.pop(claim.name, None)


def read_claims(state: Path) -> list[Claim]:
    """Read the claims in a state folder; usable by commands while a gateway runs."""
    found = []
    for file in sorted((state / CLAIMS_FOLDER).glob("*.json")):
        try:
            found.append(Claim(**json.loads(file.read_bytes())))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            _LOG.error("The claim %s of a workitem cannot be read (%s)", file.name, type(error).__name__)
    return found


def is_workitem_folder(studies: Path, name: str) -> bool:
    """Return True if a folder among the studies holds inputs of a workitem and not a study that was sent."""
    return (studies / name / WORKITEM_MARK).exists()


def claim_record(claim: Claim) -> dict[str, Any]:
    """Return a claim as a record for the status, without UIDs and patient data."""
    return {
        "workitem": claim.name,
        "worklist": claim.worklist,
        "stage": claim.stage,
        "since": claim.since,
        "progress": claim.progress[0] if claim.progress else 0,
        "end": claim.end,
        "why": claim.trouble or (claim.progress[1] if claim.progress and claim.stage == "performing" else ""),
        "trouble": claim.trouble,
    }


def claim_line(told: Mapping[str, Any]) -> str:
    """Format a record of :func:`claim_record` as a line of `status`."""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(told["since"]))
    why = f": {told['why']}" if told["why"] else ""
    end = f" ({told['end']})" if told["end"] else ""
    return (
        f"{told['workitem']}  worklist {told['worklist']}  {STAGE_DESCRIPTIONS[told['stage']]}{end} since {since}{why}"
    )
