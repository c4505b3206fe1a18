"""Doing something again for an operator: deliver a result, segment a series, decide on a study with today's rules.

An archive that is polled may be asked for a study again, too.

These functions change the queue only, so a command may call them while the gateway runs; its workers find the jobs.
Each refuses while the thing that it would repeat is being done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from semiseg.errors import InputError
from server.gateway.config import PolledArchive
from server.gateway.instance_store import STUDIES_FOLDER
from server.gateway.job_kinds import DELIVER, FETCH, RESULTS_FOLDER, SEGMENT, STUDY, WORKITEM, without_failures
from server.gateway.study_search import find_series, find_studies, find_study
from server.gateway.uid_hasher import KEY_FILE, UidHasher
from server.gateway.ups_claims import is_workitem_folder, read_claims
from server.jobs.queue import ENDED_STATES, Queue, QueuedJob

ReprocessStep = Literal["deliver", "segment", "decide"]


def reprocess(
    queue: Queue, state: Path, typed: str, what: ReprocessStep | None = None
) -> tuple[list[QueuedJob], list[str]]:
    """Do again what an operator names.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        typed: A job that delivered or segmented, a study or a series, as :mod:`server.gateway.study_search` finds them.
        what: Work that is done again. By default a delivery is delivered, a segmentation or a series is segmented, and
            a study is decided on.

    Returns:
        The jobs, which wait, and a sentence for each thing that was left as it is.

    Raises:
        InputError: There is no such thing, or nothing of it can be done again now.
    """
    named = queue.get(typed.strip())
    if named is not None and named.queue in (DELIVER, SEGMENT):
        study, default = named.owner, "deliver" if named.queue == DELIVER else "segment"
        orders = [named] if named.queue == SEGMENT else []
        sent = [named] if named.queue == DELIVER else _newest_deliveries(queue, study, orders)
        if named.queue == DELIVER and what == "segment":
            orders = [one for one in queue.jobs(queue=SEGMENT, owner=study) if one.id == named.payload["of"]]
    elif (
        named is None and not find_studies(queue, state, typed) and (mine := find_series(queue, state, typed, SEGMENT))
    ):
        orders = _newest(mine)
        study, default = orders[0].owner, "segment"
        sent = _newest_deliveries(queue, study, orders)
    else:
        study, default = named.owner if named is not None else find_study(queue, state, typed), "decide"
        orders = _newest(segmentations(queue, study))
        sent = _newest_deliveries(queue, study, orders)
    what = what or default  # type: ignore[assignment]
    if what == "decide":
        return [reapply_rules(queue, state, study)], []
    wanted, repeat = (sent, redeliver) if what == "deliver" else (orders, resegment)
    if not wanted:
        thing = "delivered" if what == "deliver" else "segmented"
        raise InputError(f"Nothing of study {study} was {thing}; `semiseg gateway show {study}` says what was decided.")
    put, left = list[QueuedJob](), list[str]()
    for job in wanted:
        try:
            put.append(repeat(queue, state, job.id))
        except InputError as error:
            left.append(str(error))
    if not put:
        raise InputError(" ".join(dict.fromkeys(left)))
    return put, left


def refetch(
    queue: Queue, state: Path, polls: Sequence[PolledArchive], typed: str, source: str | None = None
) -> QueuedJob:
    """Fetch a study from an archive that is polled, whether it lists the study or not.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        polls: Archives of the configuration.
        typed: A Study Instance UID, or one of the names by which a study that was fetched before is found.
        source: Name of the archive; needed where there are several and none has given the study before.

    Returns:
        The job, which waits.

    Raises:
        InputError: There is no such archive, its UID is not known, or it is being fetched.
    """
    typed = typed.strip()
    is_uid = re.fullmatch(r"[0-9]+(\.[0-9]+)+", typed) is not None and len(typed) <= 64
    study = UidHasher(state / KEY_FILE).hash(typed) if is_uid else find_study(queue, state, typed)
    before = queue.jobs(queue=FETCH, owner=study)
    if waiting := [job for job in before if not job.ended]:
        raise InputError(f"Study {study} is being fetched already (job {waiting[0].id}), or waits for it.")
    if not is_uid and not before:
        raise InputError(f"Study {study} did not come from an archive that is polled; type its Study Instance UID.")
    uid = typed if is_uid else before[-1].payload["uid"]
    urls = [poll.url for poll in polls if source in (None, poll.name)]
    if len(urls) > 1:
        urls = [url for url in urls if before and url == before[-1].payload["url"]]
    if len(urls) != 1:
        names = ", ".join(poll.name for poll in polls) or "none in `polls`"
        raise InputError(f"Say with --from which archive gives it: {names}.")
    payload = {"study": study, "url": urls[0], "uid": uid}
    return queue.put(FETCH, payload, key=f"{urls[0]} {uid} asked for {time.time():.3f}", owner=study)


def _newest(orders: Sequence[QueuedJob]) -> list[QueuedJob]:
    """The last order of each rule and series: earlier ones were superseded."""
    return list({(one.payload["rule"], one.payload["series"]): one for one in orders}.values())


def _newest_deliveries(queue: Queue, study: str, orders: Sequence[QueuedJob]) -> list[QueuedJob]:
    """The last delivery of each of ``orders`` to each destination."""
    wanted = {one.id for one in orders}
    found = [one for one in deliveries(queue, study) if one.payload["of"] in wanted]
    return list({(one.payload["of"], one.payload["to"]): one for one in found}.values())


def redeliver(queue: Queue, state: Path, name: str) -> QueuedJob:
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
    if not all((state / RESULTS_FOLDER / job.payload["of"] / file).exists() for file in job.payload["files"]):
        raise InputError(f"The result of job {name} is not here any more; have the series segmented again.")
    return _begun_anew(queue, job)


def resegment(queue: Queue, state: Path, name: str) -> QueuedJob:
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


def reapply_rules(queue: Queue, state: Path, study: str) -> QueuedJob:
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
        InputError: the study is not here, is being decided on or segmented, or holds inputs of a workitem.
    """
    _require_study(state, study)
    require_no_workitem(state, study)
    for job in queue.jobs("waiting", "running", owner=study):
        if job.queue == STUDY:
            raise InputError(f"The rules are being applied to study {study} (job {job.id}); wait for the end.")
        if job.queue == SEGMENT and job.state == "running":
            raise InputError(f"Study {study} is being segmented (job {job.id}); wait for the end, or cancel that job.")
    told = {"study": study, "why": "an operator asked for it", "again": _count(queue.jobs(queue=STUDY, owner=study))}
    return queue.put(STUDY, told, owner=study)


def require_no_workitem(state: Path, study: str) -> None:
    """Refuse to apply the rules for studies that were sent to inputs of a workitem.

    Raises:
        InputError: they are inputs of a workitem.
    """
    if is_workitem_folder(state / STUDIES_FOLDER, study):
        raise InputError(
            f"{study} holds the inputs of a workitem, which its worklist decides on; have the manager schedule it anew."
        )


def belongs_to_ended_workitem(state: Path, job: QueuedJob) -> bool:
    """Whether a job belongs to a workitem that is no longer worked on, so that nobody waits for what it would do."""
    if job.queue != WORKITEM and not is_workitem_folder(state / STUDIES_FOLDER, job.owner):
        return False
    return not any(claim.name == job.owner and claim.stage == "performing" for claim in read_claims(state))


def segmentations(queue: Queue, study: str, series: str | None = None) -> list[QueuedJob]:
    """The jobs that had scans of a study segmented, or those of one series, by its name in the audit log."""
    found = queue.jobs(queue=SEGMENT, owner=study)
    return [job for job in found if series is None or job.payload["series"] == series]


def deliveries(queue: Queue, study: str, of: str | None = None) -> list[QueuedJob]:
    """The jobs that delivered results of a study, or those of one segmentation, by its job."""
    found = queue.jobs(queue=DELIVER, owner=study)
    return [job for job in found if of is None or job.payload["of"] == of]


def _ended_job(queue: Queue, name: str, kind: str, what: str) -> QueuedJob:
    job = queue.get(name)
    if job is None or job.queue != kind:
        raise InputError(f"{name} is no job of a {what}; `semiseg gateway show STUDY` lists them.")
    if job.state == "running":
        raise InputError(f"Job {name} is being worked on; wait for its end, or cancel it first.")
    if not job.ended:
        raise InputError(f"Job {name} waits already, and is tried by itself.")
    return job


def _begun_anew(queue: Queue, job: QueuedJob) -> QueuedJob:
    payload = without_failures(job.payload) | {"again": job.payload.get("again", 0) + 1}
    payload.pop("taken", None)
    if not queue.retry(job.id, payload, states=ENDED_STATES):
        raise InputError(f"Job {job.id} has begun meanwhile; look at it with `semiseg gateway show`.")
    found = queue.get(job.id)
    assert found is not None
    return found


def _require_study(state: Path, study: str, files: list[str] | None = None) -> None:
    folder = state / STUDIES_FOLDER / study
    if not study or not folder.is_dir() or not all((folder / file).exists() for file in files or ()):
        raise InputError(f"Study {study} is not here any more; have it sent again.")


def _count(jobs: list[QueuedJob]) -> int:
    return sum(1 for job in jobs if job.payload.get("again")) + 1
