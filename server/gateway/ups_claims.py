"""Workitems that the gateway has claimed, or may have: a file for each, until the manager has confirmed its end.

    worklists/NAME.json    mode 600, since it holds the Transaction UID, which is the key to the workitem

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
    """A workitem that is ours, or may be.

    Attributes:
        name: Name of the claim, and of the folder of its inputs among the studies.
        worklist: Name of the worklist.
        url: Address of the manager when it was claimed.
        uid: SOP Instance UID of the workitem.
        transaction: Transaction UID.
        step: The configured step, as JSON: what was claimed for one step is not done for another.
        stage: Stage that the claim is at.
        since: Unix seconds at which the claim began.
        codes: Scheduled Workitem Code Sequence, as (value, scheme, meaning).
        started: Performed Procedure Step Start DateTime.
        ended: Performed Procedure Step End DateTime, "" before the end.
        asked: True once a claim may have reached the manager without our hearing of it.
        progress: Per cent and description that the manager was told last.
        end: The final state to reach: ``COMPLETED`` or ``CANCELED``; "" before it is known.
        reason: Code and sentence of a cancellation: value, meaning, sentence.
        missed: Number of looks in a row at which the manager did not know the workitem.
        refused: Number of requests in a row that the manager refused.
        trouble: Sentence that says what is wrong with it; "" where nothing is.
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
    """The files; to be used from any thread of the one process that holds the state folder."""

    def __init__(self, state: Path) -> None:
        """Read those that a former process left. One that cannot be read stays, and is logged."""
        self._folder = state / CLAIMS_FOLDER
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._claims = {claim.name: claim for claim in read_claims(state)}

    def all(self) -> list[Claim]:
        """The claims, oldest first."""
        with self._lock:
            return sorted(self._claims.values(), key=lambda claim: claim.since)

    def has(self, name: str) -> bool:
        """Whether there is a claim of this name."""
        with self._lock:
            return name in self._claims

    def write(self, claim: Claim) -> None:
        """Keep a claim as it is now; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        with atomic_file(self._folder / f"{claim.name}.json", private=True) as stream:
            stream.write(json.dumps(dataclasses.asdict(claim)).encode())
        with self._lock:
            self._claims[claim.name] = claim

    def remove(self, claim: Claim) -> None:
        """Forget a claim, because the workitem has ended or is not ours."""
        (self._folder / f"{claim.name}.json").unlink(missing_ok=True)
        with self._lock:
            self._claims.pop(claim.name, None)


def read_claims(state: Path) -> list[Claim]:
    """The claims in a state folder, for commands that look at it while a gateway runs, too."""
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
    """Whether a folder among the studies holds inputs of a workitem, so that it is no study that was sent."""
    return (studies / name / WORKITEM_MARK).exists()


def claim_record(claim: Claim) -> dict[str, Any]:
    """A claim for people and programs, without UIDs and without anything of a patient."""
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
    """A claim, as it is :func:`claim_record`, as a line of `status`."""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(told["since"]))
    why = f": {told['why']}" if told["why"] else ""
    end = f" ({told['end']})" if told["end"] else ""
    return (
        f"{told['workitem']}  worklist {told['worklist']}  {STAGE_DESCRIPTIONS[told['stage']]}{end} since {since}{why}"
    )
