"""Status of the gateway as a JSON document with problems and advice; its in-memory part is shared through a file.

state/standing.json   in-memory status, written about once a second by a running gateway, and deleted when it stops
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from semiseg.system.durable_files import free_bytes
from server.gateway.instance_store import STUDIES_FOLDER
from server.gateway.job_kinds import JOB_KINDS, SEGMENT
from server.gateway.job_payloads import DeliverPayload, SegmentPayload, readable_payload_of
from server.gateway.study_list import list_studies
from server.gateway.ups_claims import claim_record, read_claims
from server.jobs.queue import Queue, QueuedJob

LIVE_STATUS_FILE = "standing.json"
WRITE_INTERVAL = 1.0  # seconds between two updates of the file
STALE_SECONDS = 30.0  # age of the file after which the gateway is considered stopped
RECENT_SECONDS = 86400.0  # time for which a rejection is shown as a problem
MAX_ROWS = 50  # rows of each table on the page


def write_live_status(state: Path, live: Mapping[str, Any]) -> None:
    """Write the in-memory status for commands in other processes; it need not survive a power failure."""
    part = state / f".{LIVE_STATUS_FILE}.part"
    part.write_text(json.dumps(live), encoding="utf-8")
    part.replace(state / LIVE_STATUS_FILE)


def read_live_status(state: Path) -> dict[str, Any]:
    """Read the in-memory status of the running gateway; `trouble` holds a message if none runs."""
    found: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        found = json.loads((state / LIVE_STATUS_FILE).read_text(encoding="utf-8"))
    if time.time() - found.get("time", 0.0) > STALE_SECONDS:
        found["trouble"] = "The gateway is not running, or hangs."
    return {**EMPTY_STATUS, **found}


def delete_live_status(state: Path) -> None:
    """Delete the file, because the gateway stops."""
    (state / LIVE_STATUS_FILE).unlink(missing_ok=True)


EMPTY_STATUS: dict[str, Any] = {
    "time": 0.0,
    "trouble": "",
    "open_studies": 0,
    "arriving": [],
    "servers": [],
    "destinations": [],
    "polls": [],
    "worklists": [],
    "workitems": [],
    "studies_in_trouble": [],
    "rejected": [],
}


def status_document(queue: Queue, state: Path, live: Mapping[str, Any], *, shown: int | None = None) -> dict[str, Any]:
    """Return the whole status as a JSON document.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        live: In-memory status of the running gateway, from :func:`read_live_status`.
        shown: Maximum number of studies and of jobs in each table; None returns all.
    """
    held = {one["study"]: one["why"] for one in live["studies_in_trouble"]}
    workitems = live["workitems"]
    if not live["time"]:  # no gateway is running, so its files are read
        workitems = [claim_record(claim) for claim in read_claims(state)]
        held = {one.name: why for one in _folders(state) if (why := _lacking(one))}
    studies = list_studies(queue, state, held, live["arriving"], shown=shown)
    told = {
        **{name: value for name, value in live.items() if name != "arriving"},
        "studies_in_trouble": live["studies_in_trouble"][:shown],
        "workitems": workitems[:shown],
        "studies": len(_folders(state)),
        "free_bytes": free_bytes(state),
        "study_list": studies,
        **job_tables(queue, shown),
    }
    return told | {"problems": find_problems(told)}


def find_problems(told: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the problems: a sentence for each (`what`), and a command or advice (`do`)."""
    found = []
    if told["trouble"]:
        found.append(_problem(told["trouble"], "semiseg gateway check"))
    for kind, peers, key in (
        ("Server", "servers", "url"),
        ("Destination", "destinations", "name"),
        ("Polled archive", "polls", "url"),
        ("Worklist", "worklists", "name"),
    ):
        for one in told[peers]:
            if one["trouble"]:
                found.append(_problem(f"{kind} {one[key]}: {one['trouble']}", "semiseg gateway check"))
    listed = set()
    managers = {one["name"]: one["trouble"] for one in told["worklists"]}
    for one in told["workitems"]:
        if one["trouble"] and one["trouble"] != managers.get(one["worklist"]):  # each problem is listed once
            listed.add(one["workitem"])
            what = f"Workitem {one['workitem']} of the worklist {one['worklist']}: {one['trouble']}"
            is_here = any(study["study"] == one["workitem"] for study in told["study_list"])
            do = f"semiseg gateway show {one['workitem']}" if is_here else "semiseg gateway check"
            found.append(_problem(what, do))
    for one in told["study_list"]:
        if one["trouble"]:
            listed.add(one["study"])
            found.append(_problem(f"Study {one['study']}: {one['trouble']}", one["do"]))
    for one in told["studies_in_trouble"]:
        if one["study"] not in listed:
            found.append(_problem(f"Study {one['study']}: {one['why']}", f"semiseg gateway show {one['study']}"))
    for name, state in (("dead_letters", "dead letter(s)"), ("held_up", "job(s) failed and are retried")):
        others = [one for one in told[name] if one["study"] not in listed and not _is_explained(one, told)]
        if others:
            do = "semiseg gateway retry --all" if name == "dead_letters" else f"semiseg gateway show {others[0]['id']}"
            found.append(_problem(f"{len(others)} {state}, such as: {others[0]['error']}", do))
    recent = [one for one in told["rejected"] if time.time() - one["time"] < RECENT_SECONDS]
    if recent:
        one = recent[0]
        titles = f" calling {one['calling']} called {one['called']}" if one["calling"] or one["called"] else ""
        sentence = (
            f"{len(recent)} association(s) were rejected, the last one from {one['address']}{titles}: {one['why']}"
        )
        found.append(
            _problem(f"{sentence}.".replace("..", "."), "correct `dimse.senders`, `ae_title` or the sender's settings")
        )
    return found


def _is_explained(job: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Return True if a job waits for a server or destination whose problem is listed itself."""
    if job["state"] == "failed":
        return False
    if job["kind"] == SEGMENT:
        return any(one["trouble"] for one in told["servers"])
    return any(one["trouble"] for one in told["destinations"] if one["name"] in job["to"])


def job_tables(queue: Queue, shown: int | None = None) -> dict[str, Any]:
    """Return the number of jobs by kind and state, and the last ``shown`` jobs to be retried and dead letters."""
    held_up = [job for job in queue.jobs("waiting", "running") if readable_payload_of(job).tries]
    letters = queue.jobs("failed")
    return {
        "jobs": {kind: queue.count(kind) for kind in JOB_KINDS},
        "held_up": [job_record(job) for job in held_up[::-1][:shown]],
        "dead_letters": [job_record(job) for job in letters[::-1][:shown]],
    }


def job_record(job: QueuedJob) -> dict[str, Any]:
    """Return a job as a record for the status, without patient data, and with UIDs only if they are revealed."""
    payload = readable_payload_of(job)
    delivery = payload if isinstance(payload, DeliverPayload) else None
    scan = payload if isinstance(payload, SegmentPayload) else None
    return {
        "id": job.id,
        "kind": job.queue,
        "state": job.state,
        "study": payload.study,
        "rule": scan.rule if scan else delivery.rule if delivery else "",
        "to": sorted(scan.to) if scan else [delivery.to] if delivery else [],
        "created": job.created,
        "changed": job.changed,
        "attempts": job.attempts,
        "tries": payload.tries,
        "delivered": len(delivery.taken) if delivery else 0,
        "error": job.result.get("error") or payload.trouble,
        "refused_since": delivery.refused_since if delivery and delivery.refused else None,
    }


def _folders(state: Path) -> list[Path]:
    return list((state / STUDIES_FOLDER).iterdir()) if (state / STUDIES_FOLDER).is_dir() else []


def _lacking(folder: Path) -> str:
    missing = sorted(folder.glob("lacks-*"))
    return f"The study is incomplete. {missing[0].read_text(encoding='utf-8')}" if missing else ""


def _problem(what: str, do: str) -> dict[str, str]:
    return {"what": what, "do": do}
