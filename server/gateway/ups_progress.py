"""How far the queue is with a workitem, what it ends with, and what was delivered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from server.gateway.config import Destination, GatewayConfig
from server.gateway.kinds import DELIVER, RESULTS, SEGMENT, WORKITEM
from server.gateway.ups_attributes import BAD_FORMAT, EQUIPMENT, INCOMPLETE, UNSPECIFIED, Reason, outputs
from server.jobs.queue import Job, Queue

_GIVEN_UP = "Given up"  # how the sentences of jobs begin that others did not let be done for too long
_OPERATOR = Reason(*UNSPECIFIED, "An operator of the gateway stopped it.")
_SHARE = {WORKITEM: (5, 15), SEGMENT: (20, 60), DELIVER: (80, 19)}  # per cent before, and of all its jobs together


@dataclass(frozen=True)
class Standing:
    """How far the queue is with a workitem.

    Attributes:
        percent: Progress, 0-100.
        words: Description of the work that is being done.
        trouble: Reason why it does not go on at present, without anything of a patient; "" where it does.
        end: ``COMPLETED`` or ``CANCELED`` when nothing more is done; "" before.
        reason: Reason why it is canceled; None where it is not.
    """

    percent: int
    words: str
    trouble: str = ""
    end: str = ""
    reason: Reason | None = None


def standing_of(queue: Queue, name: str, key: str) -> Standing:
    """How far the queue is with a workitem.

    Args:
        queue: The queue.
        name: Name of the claim, which owns the jobs.
        key: Key of the job that fetches the inputs.
    """
    jobs = queue.jobs(owner=name)
    first = next((job for job in jobs if job.queue == WORKITEM and job.key == key), None)
    if first is None:
        return Standing(0, "", end="CANCELED", reason=Reason(*UNSPECIFIED, "An operator of the gateway deleted it."))
    if first.state != "done":
        return _unfinished(first)
    known = {job.id: job for job in jobs}
    segments = _those(first, known)
    if segments is None:
        return Standing(0, "", end="CANCELED", reason=_OPERATOR)
    deliveries: list[Job] = []
    for job in segments:
        if job.state == "done":
            found = _those(job, known)
            if found is None:
                return Standing(0, "", end="CANCELED", reason=_OPERATOR)
            deliveries += found
    open_jobs = [job for job in (*segments, *deliveries) if not job.ended]
    if open_jobs:
        return Standing(_percent(segments, deliveries), _words(open_jobs), _trouble(open_jobs))
    bad = next((job for job in (*segments, *deliveries) if job.state != "done"), None)
    if bad is not None:
        return Standing(0, "", end="CANCELED", reason=_reason(bad))
    return Standing(100, "", end="COMPLETED")


@dataclass
class Delivered:
    """What there is of a workitem's results.

    Attributes:
        items: Items of the Output Information Sequence.
        model: Name of the model that made them.
    """

    items: list[Dataset] = field(default_factory=list)
    model: str = ""


def outputs_of(queue: Queue, name: str, config: GatewayConfig) -> Delivered:
    """What was delivered for a workitem, and where."""
    files: dict[Path, list[Destination]] = {}
    model = ""
    for job in queue.jobs(owner=name):
        if job.queue == SEGMENT and job.state == "done":
            model = model or _model(job)
        if job.queue != DELIVER or job.payload["to"] not in config.destinations:
            continue
        taken = job.payload["files"] if job.state == "done" else job.payload.get("taken", ())
        for file in taken:
            path = config.state / RESULTS / job.payload["of"] / file
            if path.exists():
                files.setdefault(path, []).append(config.destinations[job.payload["to"]])
    return Delivered(outputs(files), model)


def _those(job: Job, known: dict[str, Job]) -> list[Job] | None:
    """The jobs that a job has put in; None where one of them was deleted."""
    found = [known.get(one) for one in job.result.get("jobs", ())]
    return None if None in found else [one for one in found if one is not None]


def _unfinished(first: Job) -> Standing:
    if first.state == "failed":
        value, meaning = first.result.get("code") or EQUIPMENT
        sentence = str(first.result.get("error", "The inputs could not be worked on."))
        return Standing(0, "", end="CANCELED", reason=Reason(value, meaning, sentence))
    if first.state == "cancelled":
        return Standing(0, "", end="CANCELED", reason=_OPERATOR)
    return Standing(5, "Fetching the inputs", trouble=str(first.payload.get("trouble", "")))


def _reason(bad: Job) -> Reason:
    """Why a workitem is canceled. The sentence of a server may quote a Series Description, so it is not repeated."""
    error = str(bad.result.get("error", ""))
    if bad.state == "cancelled":
        return _OPERATOR
    if bad.queue == DELIVER:
        return Reason(*EQUIPMENT, f"The results could not be delivered to {bad.payload['to']}.")
    if error.startswith(_GIVEN_UP):
        return Reason(*EQUIPMENT, "No segmentation server could do it in time.")
    if "not here any more" in error:
        return Reason(*INCOMPLETE, "The inputs were deleted before they were segmented.")
    return Reason(*BAD_FORMAT, "The segmentation server refused the scan; the gateway's operator can read why.")


def _percent(segments: list[Job], deliveries: list[Job]) -> int:
    before, share = _SHARE[SEGMENT]
    done = sum(job.ended for job in segments)
    if done < len(segments):
        return before + share * done // len(segments)
    before, share = _SHARE[DELIVER]
    return before + share * sum(job.ended for job in deliveries) // max(1, len(deliveries))


def _words(jobs: list[Job]) -> str:
    return "Segmenting" if any(job.queue == SEGMENT for job in jobs) else "Delivering the results"


def _trouble(jobs: list[Job]) -> str:
    for job in jobs:
        if job.payload.get("tries"):
            what = f"delivered to {job.payload['to']}" if job.queue == DELIVER else "segmented"
            return f"It could not be {what} yet, and is tried again (job {job.id})."
    return ""


def _model(job: Job) -> str:
    """The name of the model, as the server told it."""
    told: Any = job.result.get("model")
    if isinstance(told, dict):
        told = told.get("name", "")
    return str(told or "")
