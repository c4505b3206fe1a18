"""Progress of a workitem's jobs in the queue, its final state, and its delivered results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from server.gateway.config import GatewayConfig
from server.gateway.destinations import DestinationBase
from server.gateway.job_kinds import DELIVER, RESULTS_FOLDER, SEGMENT, WORKITEM
from server.gateway.job_payloads import DeliverPayload, WorkitemPayload, payload_of
from server.gateway.ups_attributes import (
    BAD_FORMAT,
    EQUIPMENT,
    INCOMPLETE,
    UNSPECIFIED,
    CancellationReason,
    output_items,
)
from server.jobs.queue import Queue, QueuedJob

_GIVEN_UP = "Given up"  # beginning of the error of a job that exceeded its retries (retry_scheduler)
_OPERATOR = CancellationReason(*UNSPECIFIED, "An operator of the gateway stopped it.")
# Percentage at the beginning of each stage, and the share of all its jobs together.
_SHARE = {WORKITEM: (5, 15), SEGMENT: (20, 60), DELIVER: (80, 19)}


@dataclass(frozen=True)
class WorkitemProgress:
    """Progress of a workitem's jobs.

    Attributes:
        percent: Progress, 0-100.
        words: Description of the current work.
        trouble: Reason why the work is delayed, without patient data; "" if it is not.
        end: ``COMPLETED`` or ``CANCELED`` if no work is left; "" before.
        reason: Reason of the cancellation; None if it is not canceled.
    """

    percent: int
    words: str
    trouble: str = ""
    end: str = ""
    reason: CancellationReason | None = None


def workitem_progress(queue: Queue, name: str, key: str) -> WorkitemProgress:
    """Determine the progress of a workitem from its jobs.

    Args:
        queue: Queue of the gateway.
        name: Name of the claim, which owns the jobs.
        key: Key of the job that fetches the inputs.
    """
    jobs = queue.jobs(owner=name)
    first = next((job for job in jobs if job.queue == WORKITEM and job.key == key), None)
    if first is None:
        return WorkitemProgress(
            0, "", end="CANCELED", reason=CancellationReason(*UNSPECIFIED, "An operator of the gateway deleted it.")
        )
    if first.state != "done":
        return _unfinished(first)
    known = {job.id: job for job in jobs}
    segments = _those(first, known)
    if segments is None:
        return WorkitemProgress(0, "", end="CANCELED", reason=_OPERATOR)
    deliveries: list[QueuedJob] = []
    for job in segments:
        if job.state == "done":
            found = _those(job, known)
            if found is None:
                return WorkitemProgress(0, "", end="CANCELED", reason=_OPERATOR)
            deliveries += found
    open_jobs = [job for job in (*segments, *deliveries) if not job.ended]
    if open_jobs:
        return WorkitemProgress(_percent(segments, deliveries), _words(open_jobs), _trouble(open_jobs))
    bad = next((job for job in (*segments, *deliveries) if job.state != "done"), None)
    if bad is not None:
        return WorkitemProgress(0, "", end="CANCELED", reason=_reason(bad))
    return WorkitemProgress(100, "", end="COMPLETED")


@dataclass
class DeliveredResults:
    """Delivered results of a workitem.

    Attributes:
        items: Items of the Output Information Sequence.
        model: Name of the model that made the results.
    """

    items: list[Dataset] = field(default_factory=list)
    model: str = ""


def delivered_results(queue: Queue, name: str, config: GatewayConfig) -> DeliveredResults:
    """Collect the results that were delivered for a workitem, with their destinations."""
    files: dict[Path, list[DestinationBase]] = {}
    model = ""
    for job in queue.jobs(owner=name):
        if job.queue == SEGMENT and job.state == "done":
            model = model or _model(job)
        if job.queue != DELIVER or (result := DeliverPayload.from_job(job)).to not in config.destinations:
            continue
        for file in result.files if job.state == "done" else result.taken:
            path = config.state / RESULTS_FOLDER / result.of / file
            if path.exists():
                files.setdefault(path, []).append(config.destinations[result.to])
    return DeliveredResults(output_items(files), model)


def _those(job: QueuedJob, known: dict[str, QueuedJob]) -> list[QueuedJob] | None:
    """Return the jobs that a job has created; None if one of them was deleted."""
    found = [known.get(one) for one in job.result.get("jobs", ())]
    return None if None in found else [one for one in found if one is not None]


def _unfinished(first: QueuedJob) -> WorkitemProgress:
    if first.state == "failed":
        value, meaning = first.result.get("code") or EQUIPMENT
        sentence = str(first.result.get("error", "The inputs could not be processed."))
        return WorkitemProgress(0, "", end="CANCELED", reason=CancellationReason(value, meaning, sentence))
    if first.state == "cancelled":
        return WorkitemProgress(0, "", end="CANCELED", reason=_OPERATOR)
    return WorkitemProgress(5, "Fetching the inputs", trouble=WorkitemPayload.from_job(first).trouble)


def _reason(bad: QueuedJob) -> CancellationReason:
    """Return the reason of a cancellation, without the server's message, which may quote a Series Description."""
    error = str(bad.result.get("error", ""))
    if bad.state == "cancelled":
        return _OPERATOR
    if bad.queue == DELIVER:
        return CancellationReason(
            *EQUIPMENT, f"The results could not be delivered to {DeliverPayload.from_job(bad).to}."
        )
    if error.startswith(_GIVEN_UP):
        return CancellationReason(*EQUIPMENT, "No segmentation server was available in time.")
    if "not here any more" in error:
        return CancellationReason(*INCOMPLETE, "The inputs were deleted before they were segmented.")
    return CancellationReason(
        *BAD_FORMAT, "The segmentation server refused the scan; the gateway's status gives the reason."
    )


def _percent(segments: list[QueuedJob], deliveries: list[QueuedJob]) -> int:
    before, share = _SHARE[SEGMENT]
    done = sum(job.ended for job in segments)
    if done < len(segments):
        return before + share * done // len(segments)
    before, share = _SHARE[DELIVER]
    return before + share * sum(job.ended for job in deliveries) // max(1, len(deliveries))


def _words(jobs: list[QueuedJob]) -> str:
    return "Segmenting" if any(job.queue == SEGMENT for job in jobs) else "Delivering the results"


def _trouble(jobs: list[QueuedJob]) -> str:
    for job in jobs:
        payload = payload_of(job)
        if payload.tries:
            what = f"delivered to {payload.to}" if isinstance(payload, DeliverPayload) else "segmented"
            return f"It could not be {what} yet; job {job.id} is retried."
    return ""


def _model(job: QueuedJob) -> str:
    """Return the name of the model, as reported by the server."""
    told: Any = job.result.get("model")
    if isinstance(told, dict):
        told = told.get("name", "")
    return str(told or "")
