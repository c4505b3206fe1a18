"""Doing something again for an operator: deliver a result, segment a series, decide on a study with today's rules.

These functions change the queue only, so a command may call them while the gateway runs; its workers find the jobs.
Each refuses while the thing that it would repeat is being done.
"""

from __future__ import annotations

from pathlib import Path

from semiseg.errors import InputError
from server.gateway.work import DELIVER, RESULTS, SEGMENT, STUDY, tidied
from server.jobs.queue import ENDED, Job, Queue

STUDIES = "studies"  # in the state folder


def deliver_again(queue: Queue, state: Path, name: str) -> Job:
    """Send a result to its archive once more, all of its instances, whatever the archive said before.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        name: Identifier of the job that delivered it.

    Returns:
        The job, which waits.

    Raises:
        InputError: there is no such delivery, it has not ended, or the result was deleted.
    """
    job = _ended_job(queue, name, DELIVER, "delivery")
    if not all((state / RESULTS / job.payload["of"] / file).exists() for file in job.payload["files"]):
        raise InputError(f"The result of job {name} is not here any more; have the series segmented again.")
    return _begun_anew(queue, job)


def segment_again(queue: Queue, state: Path, name: str) -> Job:
    """Have a scan segmented once more and deliver what comes of it, to every destination of its order.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        name: Identifier of the job that had it segmented.

    Returns:
        The job, which waits.

    Raises:
        InputError: there is no such job, it or a delivery of it has not ended, or the study was deleted.
    """
    job = _ended_job(queue, name, SEGMENT, "segmentation")
    _require_study(state, job.payload["study"], job.payload["files"])
    mine = [one for one in queue.jobs(queue=DELIVER, owner=job.owner) if one.payload.get("of") == job.id]
    if running := [one for one in mine if one.state == "running"]:
        raise InputError(f"Its result is being delivered (job {running[0].id}); wait for the end, or cancel that job.")
    for one in mine:
        if not one.ended:  # it would send what is about to be replaced
            queue.stop(one.id)
    return _begun_anew(queue, job)


def decide_again(queue: Queue, state: Path, study: str) -> Job:
    """Apply today's rules to a study that is here; what they add is segmented, and what is done already stays.

    The gateway has to have been started with the rules meant. Orders that wait and that the rules do not make any more
    are stopped; results that were delivered stay in their archives.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        study: The study's name.

    Returns:
        The new job, which waits.

    Raises:
        InputError: the study is not here, or is being decided on or segmented.
    """
    _require_study(state, study)
    for job in queue.jobs("waiting", "running", owner=study):
        if job.queue == STUDY:
            raise InputError(f"The rules are being applied to study {study} (job {job.id}); wait for the end.")
        if job.queue == SEGMENT and job.state == "running":
            raise InputError(f"Study {study} is being segmented (job {job.id}); wait for the end, or cancel that job.")
    told = {"study": study, "why": "an operator asked for it", "again": _count(queue.jobs(queue=STUDY, owner=study))}
    return queue.put(STUDY, told, owner=study)


def segmentations(queue: Queue, study: str, series: str | None = None) -> list[Job]:
    """The jobs that had scans of a study segmented, or those of one series, by its name in the audit log."""
    found = queue.jobs(queue=SEGMENT, owner=study)
    return [job for job in found if series is None or job.payload["series"] == series]


def deliveries(queue: Queue, study: str, of: str | None = None) -> list[Job]:
    """The jobs that delivered results of a study, or those of one segmentation, by its job."""
    found = queue.jobs(queue=DELIVER, owner=study)
    return [job for job in found if of is None or job.payload["of"] == of]


def _ended_job(queue: Queue, name: str, kind: str, what: str) -> Job:
    job = queue.get(name)
    if job is None or job.queue != kind:
        raise InputError(f"{name} is no job of a {what}; `semiseg gateway show STUDY` lists them.")
    if job.state == "running":
        raise InputError(f"Job {name} is being worked on; wait for its end, or cancel it first.")
    if not job.ended:
        raise InputError(f"Job {name} waits already, and is tried by itself.")
    return job


def _begun_anew(queue: Queue, job: Job) -> Job:
    payload = tidied(job.payload) | {"again": job.payload.get("again", 0) + 1}
    payload.pop("taken", None)
    if not queue.retry(job.id, payload, states=ENDED):
        raise InputError(f"Job {job.id} has begun meanwhile; look at it with `semiseg gateway show`.")
    found = queue.get(job.id)
    assert found is not None
    return found


def _require_study(state: Path, study: str, files: list[str] | None = None) -> None:
    folder = state / STUDIES / study
    if not study or not folder.is_dir() or not all((folder / file).exists() for file in files or ()):
        raise InputError(f"Study {study} is not here any more; have it sent again.")


def _count(jobs: list[Job]) -> int:
    return sum(1 for job in jobs if job.payload.get("again")) + 1
