"""List of studies with instances, decisions and results, for the status page and `semiseg gateway status`.

It is read from the state folder and the queue, so that commands show the same as the gateway itself. It contains no
patient data: quoted Series Descriptions are replaced by '...'; `semiseg gateway show STUDY` shows them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from server.gateway.conflicts import find_conflict
from server.gateway.instance_store import STUDIES_FOLDER
from server.gateway.job_kinds import DELIVER, FETCH, PURGE, SEGMENT, STUDY, WORKITEM
from server.gateway.job_payloads import DeliverPayload, WorkitemPayload, readable_payload_of
from server.jobs.queue import Queue, QueuedJob

MAX_REASONS = 4  # reasons shown for each study


def list_studies(
    queue: Queue,
    state: Path,
    held: Mapping[str, str],
    arriving: Iterable[str],
    *,
    shown: int | None = None,
) -> list[dict[str, Any]]:
    """Return the studies that are stored or have unfinished or failed jobs, the one that changed last first.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        held: Reasons why studies need an operator, by name.
        arriving: Names of arriving studies.
        shown: Maximum number of studies, where those with a problem take precedence; None returns all.

    Returns:
        Record of each study: name, instances, series, senders, time of the last instance (`came`, Unix seconds, 0 if
        nothing is stored), `stage`, `decided`, `reasons`, `results`, `trouble` and the command that helps (`do`).
    """
    jobs: dict[str, list[QueuedJob]] = {}
    for job in queue.jobs():
        if job.owner and job.queue != PURGE:
            jobs.setdefault(job.owner, []).append(job)
    folders = {one.name: one for one in (state / STUDIES_FOLDER).iterdir()} if (state / STUDIES_FOLDER).is_dir() else {}
    names = {*folders, *(name for name, mine in jobs.items() if any(_is_news(job) for job in mine))}
    open_ones = set(arriving)
    found = [
        _study(name, state / STUDIES_FOLDER / name, jobs.get(name, []), held.get(name, ""), name in open_ones)
        for name in names
    ]
    found.sort(key=lambda one: (bool(one["trouble"]), one["changed"]), reverse=True)
    return sorted(found[:shown], key=lambda one: float(one["changed"]), reverse=True)


def _is_news(job: QueuedJob) -> bool:
    """Return True if a job without a stored study is listed: one that is unfinished or failed."""
    return job.state == "failed" or not job.ended


def _study(name: str, folder: Path, jobs: list[QueuedJob], held: str, arriving: bool) -> dict[str, Any]:
    instances, series, senders, came = _contents(folder)
    decided, reasons, fits_nothing = _decided(jobs)
    if fetched := [job for job in jobs if job.queue == WORKITEM]:  # inputs of a workitem, which have no sender
        senders = [WorkitemPayload.from_job(fetched[-1]).worklist]
        series = len({one["series"] for one in fetched[-1].result.get("decisions", ())})
    results = _results(jobs)
    trouble, do = _trouble(name, folder, jobs, held, fits_nothing=fits_nothing)
    working = any(not job.ended for job in jobs)
    stage = "arriving" if arriving else "held" if held else "being worked on" if working else "done"
    if not arriving and not held and not jobs:
        stage = "waiting for its end"
    return {
        "study": name,
        "instances": instances,
        "series": series,
        "from": senders,
        "came": came,
        "changed": max([came, *(job.changed for job in jobs)]),
        "stage": stage,
        "decided": decided,
        "reasons": reasons,
        "results": results,
        "trouble": trouble,
        "do": do,
    }


def _contents(folder: Path) -> tuple[int, int, list[str], float]:
    instances, series, senders, came = 0, 0, list[str](), 0.0
    with suppress(FileNotFoundError):
        came = folder.stat().st_mtime
        for name in (path.name for path in folder.iterdir()):
            instances += name.endswith(".dcm")
            series += name.startswith("series-")
            if name.startswith("from-"):
                senders.append(unquote(name.removeprefix("from-")))
    return instances, series, sorted(senders), came


def _decided(jobs: list[QueuedJob]) -> tuple[str, list[str], bool]:
    """Return the last decision, the reasons of rules that do not match, and True if no rule matches."""
    ended = [
        job
        for job in jobs
        if (job.queue, job.state) in ((STUDY, "done"), (WORKITEM, "done"), (WORKITEM, "failed"))
        and "decisions" in job.result
    ]
    if not ended:
        return "", [], False
    decisions = ended[-1].result["decisions"]
    fitting = Counter(one["rule"] for one in decisions if one["fits"])
    count = len({one["series"] for one in decisions})
    against = Counter(
        f"rule {one['rule']}: {redact_quotes(str(one['reason']))}" for one in decisions if not one["fits"]
    )
    reasons = [f"{told} ({number} series)" for told, number in against.most_common(MAX_REASONS)]
    if not fitting:
        return f"No rule matches any of its {count} series.", reasons, not any(job.queue == SEGMENT for job in jobs)
    told = ", ".join(f"rule {rule} takes {number}" for rule, number in fitting.items())
    return f"Of {count} series {told}.", reasons, False


def redact_quotes(reason: str) -> str:
    """Replace the quotations in a reason by '...', because Series Descriptions may name a patient."""
    return re.sub("'.*'", "'...'", reason, flags=re.DOTALL)


def _results(jobs: list[QueuedJob]) -> list[dict[str, Any]]:
    """Return the state of the results: one entry for all results of the same state, with their number."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for job in jobs:
        if job.queue not in (SEGMENT, DELIVER):
            continue
        payload = readable_payload_of(job)
        to = payload.to if isinstance(payload, DeliverPayload) else ""
        state, why = _state_of(job)
        one = found.setdefault((job.queue, to, state), {"to": to, "state": state, "count": 0, "why": "", "when": 0.0})
        one["count"] += 1
        if job.changed >= one["when"]:
            one["when"], one["why"], one["job"] = job.changed, why, job.id
    return list(found.values())


def _state_of(job: QueuedJob) -> tuple[str, str]:
    delivers = job.queue == DELIVER
    if job.state == "done":
        return ("delivered" if delivers else "segmented"), ""
    if job.state == "failed":  # a server's message may quote a Series Description
        why = str(job.result.get("error", ""))
        return "failed", redact_quotes(why)
    if job.state == "waiting":
        payload = readable_payload_of(job)
        since = payload.refused_text() if isinstance(payload, DeliverPayload) else ""
        state = "refused" if since else "waiting for the archive" if delivers else "waiting for a server"
        return state, redact_quotes(since + payload.trouble)
    if job.state == "running":
        return ("being delivered" if delivers else "being segmented"), ""
    return "cancelled", ""


def _trouble(name: str, folder: Path, jobs: list[QueuedJob], held: str, *, fits_nothing: bool) -> tuple[str, str]:
    """Return the problem of a study and the command that helps; twice "" if there is none."""
    if (conflict := find_conflict(folder)) is not None:
        return conflict.describe(), f"semiseg gateway conflict {name}"
    failed = [job for job in jobs if job.state == "failed"]
    if held:
        fetch = any(job.queue == FETCH and not job.ended for job in jobs)
        return held, f"semiseg gateway {'show' if fetch else 'complete'} {name}"
    if failed:
        why = redact_quotes(str(failed[-1].result.get("error", "")))
        # A workitem that was reported as canceled is not retried without its manager.
        is_workitem = any(job.queue == WORKITEM for job in jobs)
        do = f"semiseg gateway {f'show {name}' if is_workitem else f'retry {failed[-1].id}'}"
        return f"{len(failed)} dead letter(s). {why}", do
    for job in jobs:
        payload = readable_payload_of(job)
        if not job.ended and isinstance(payload, DeliverPayload) and (since := payload.refused_text()):
            return f"{since}{redact_quotes(payload.trouble)}", f"semiseg gateway show {job.id}"
    if fits_nothing:
        return "No rule matches any of its series.", f"semiseg gateway show {name}"
    return "", ""
