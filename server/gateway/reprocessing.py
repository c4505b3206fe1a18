"""Repetition of work for an operator: deliver a result, segment a series, or apply the present rules to a study.

A study can also be fetched again from a polled archive.

These functions change the queue only, so a command may call them while the gateway runs; its workers find the jobs.
Each refuses while the work that it would repeat is in progress.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from semiseg.errors import InputError
from server.gateway.config import PolledArchive
from server.gateway.instance_store import STUDIES_FOLDER
from server.gateway.job_kinds import DELIVER, FETCH, RESULTS_FOLDER, SEGMENT, STUDY, WORKITEM
from server.gateway.job_payloads import DeliverPayload, FetchPayload, SegmentPayload, StudyPayload, payload_of
from server.gateway.study_search import find_series, find_studies, find_study
from server.gateway.uid_hasher import KEY_FILE, UidHasher
from server.gateway.ups_claims import is_workitem_folder, read_claims
from server.jobs.queue import ENDED_STATES, Queue, QueuedJob

ReprocessStep = Literal["deliver", "segment", "decide"]


def reprocess(
    queue: Queue, state: Path, typed: str, what: ReprocessStep | None = None
) -> tuple[list[QueuedJob], list[str]]:
    """Repeat the work that an operator names.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        typed: Identifier of a delivery or segmentation job, or a study or series as found by
            :mod:`server.gateway.study_search`.
        what: Work to repeat. By default a delivery is delivered, a segmentation or a series is segmented, and the rules
            are applied to a study.

    Returns:
        The waiting jobs, and a sentence for each piece of work that was not repeated.

    Raises:
        InputError: There is no such job, study or series, or nothing of it can be repeated now.
    """
    named = queue.get(typed.strip())
    if named is not None and named.queue in (DELIVER, SEGMENT):
        study, default = named.owner, "deliver" if named.queue == DELIVER else "segment"
        orders = [named] if named.queue == SEGMENT else []
        sent = [named] if named.queue == DELIVER else _newest_deliveries(queue, study, orders)
        if named.queue == DELIVER and what == "segment":
            orders = [
                one for one in queue.jobs(queue=SEGMENT, owner=study) if one.id == DeliverPayload.from_job(named).of
            ]
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
        raise InputError(f"Nothing of study {study} was {thing}; `semiseg gateway show {study}` shows the decision.")
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
    """Fetch a study from a polled archive, even if the polling does not find it.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        polls: Archives of the configuration.
        typed: Study Instance UID, or another search term for a study that was fetched before.
        source: Name of the archive; required if there are several and the study was not fetched before.

    Returns:
        The waiting job.

    Raises:
        InputError: There is no such archive, the study's UID is unknown, or the study is being fetched.
    """
    typed = typed.strip()
    is_uid = re.fullmatch(r"[0-9]+(\.[0-9]+)+", typed) is not None and len(typed) <= 64
    study = UidHasher(state / KEY_FILE).hash(typed) if is_uid else find_study(queue, state, typed)
    before = queue.jobs(queue=FETCH, owner=study)
    if waiting := [job for job in before if not job.ended]:
        raise InputError(f"Study {study} is being fetched already, or waits to be fetched (job {waiting[0].id}).")
    last = FetchPayload.from_job(before[-1]) if before else None
    if is_uid:
        uid = typed
    elif last is not None:
        uid = last.uid
    else:
        raise InputError(f"Study {study} was not fetched from a polled archive; give its Study Instance UID.")
    urls = [poll.url for poll in polls if source in (None, poll.name)]
    if len(urls) > 1:
        urls = [url for url in urls if last is not None and url == last.url]
    if len(urls) != 1:
        names = ", ".join(poll.name for poll in polls) or "none in `polls`"
        raise InputError(f"Choose the archive with --from: {names}.")
    payload = FetchPayload(study=study, url=urls[0], uid=uid)
    return queue.put(FETCH, payload.to_json(), key=f"{urls[0]} {uid} asked for {time.time():.3f}", owner=study)


def _newest(orders: Sequence[QueuedJob]) -> list[QueuedJob]:
    """Return the last job of each rule and series, because earlier ones were superseded."""
    scans = [(SegmentPayload.from_job(one), one) for one in orders]
    return list({(scan.rule, scan.series): one for scan, one in scans}.values())


def _newest_deliveries(queue: Queue, study: str, orders: Sequence[QueuedJob]) -> list[QueuedJob]:
    """Return the last delivery of each of ``orders`` to each destination."""
    wanted = {one.id for one in orders}
    found = [(DeliverPayload.from_job(one), one) for one in deliveries(queue, study)]
    return list({(result.of, result.to): one for result, one in found if result.of in wanted}.values())


def redeliver(queue: Queue, state: Path, name: str) -> QueuedJob:
    """Send all instances of a result to its archive again, including those that the archive has confirmed.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        name: Identifier of the delivery job.

    Returns:
        The waiting job.

    Raises:
        InputError: There is no such delivery, it has not ended, or the result was deleted.
    """
    job = _ended_job(queue, name, DELIVER, "delivery")
    result = DeliverPayload.from_job(job)
    if not all((state / RESULTS_FOLDER / result.of / file).exists() for file in result.files):
        raise InputError(f"The result of job {name} is not here any more; have the series segmented again.")
    return _begun_anew(queue, job)


def resegment(queue: Queue, state: Path, name: str) -> QueuedJob:
    """Have a scan segmented again, and the result delivered to every destination of the job.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        name: Identifier of the segmentation job.

    Returns:
        The waiting job.

    Raises:
        InputError: There is no such job, it or a delivery of its result has not ended, or the study was deleted.
    """
    job = _ended_job(queue, name, SEGMENT, "segmentation")
    scan = SegmentPayload.from_job(job)
    _require_study(state, scan.study, scan.files)
    mine = deliveries(queue, job.owner, job.id)
    if running := [one for one in mine if one.state == "running"]:
        raise InputError(f"Its result is being delivered (job {running[0].id}); wait for the end, or cancel that job.")
    for one in mine:
        if not one.ended:  # it would send a result that is about to be replaced
            queue.stop(one.id)
    return _begun_anew(queue, job)


def reapply_rules(queue: Queue, state: Path, study: str) -> QueuedJob:
    """Apply the present rules to a stored study; only series that were not segmented before are segmented.

    The gateway has to be running with these rules. Waiting jobs that the rules do not create any more are stopped;
    delivered results stay in their archives.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        study: Name of the study.

    Returns:
        The new, waiting job.

    Raises:
        InputError: The study is not stored, the rules are being applied to it, it is being segmented, or it holds
            inputs of a workitem.
    """
    _require_study(state, study)
    require_no_workitem(state, study)
    for job in queue.jobs("waiting", "running", owner=study):
        if job.queue == STUDY:
            raise InputError(f"The rules are being applied to study {study} (job {job.id}); wait for the end.")
        if job.queue == SEGMENT and job.state == "running":
            raise InputError(f"Study {study} is being segmented (job {job.id}); wait for the end, or cancel that job.")
    before = sum(1 for job in queue.jobs(queue=STUDY, owner=study) if StudyPayload.from_job(job).again)
    order = StudyPayload(study=study, why="an operator requested it", again=before + 1)
    return queue.put(STUDY, order.to_json(), owner=study)


def require_no_workitem(state: Path, study: str) -> None:
    """Refuse inputs of a workitem, to which the rules for studies are not applied.

    Raises:
        InputError: The folder holds inputs of a workitem.
    """
    if is_workitem_folder(state / STUDIES_FOLDER, study):
        raise InputError(
            f"{study} holds the inputs of a workitem, which its worklist controls; have the manager schedule it again."
        )


def belongs_to_ended_workitem(state: Path, job: QueuedJob) -> bool:
    """Return True if a job belongs to a workitem that has ended, so that its result is not needed any more."""
    if job.queue != WORKITEM and not is_workitem_folder(state / STUDIES_FOLDER, job.owner):
        return False
    return not any(claim.name == job.owner and claim.stage == "performing" for claim in read_claims(state))


def segmentations(queue: Queue, study: str, series: str | None = None) -> list[QueuedJob]:
    """Return the segmentation jobs of a study, or of one series, by its name in the audit log."""
    found = queue.jobs(queue=SEGMENT, owner=study)
    return [job for job in found if series is None or SegmentPayload.from_job(job).series == series]


def deliveries(queue: Queue, study: str, of: str | None = None) -> list[QueuedJob]:
    """Return the delivery jobs of a study, or of one segmentation job."""
    found = queue.jobs(queue=DELIVER, owner=study)
    return [job for job in found if of is None or DeliverPayload.from_job(job).of == of]


def _ended_job(queue: Queue, name: str, kind: str, what: str) -> QueuedJob:
    job = queue.get(name)
    if job is None or job.queue != kind:
        raise InputError(f"{name} is not a {what} job; `semiseg gateway show STUDY` lists them.")
    if job.state == "running":
        raise InputError(f"Job {name} is running; wait for its end, or cancel it first.")
    if not job.ended:
        raise InputError(f"Job {name} is waiting already, and is run automatically.")
    return job


def _begun_anew(queue: Queue, job: QueuedJob) -> QueuedJob:
    payload = payload_of(job).without_failures()
    payload = dataclasses.replace(payload, again=payload.again + 1)
    if isinstance(payload, DeliverPayload):
        payload = dataclasses.replace(payload, taken=())
    if not queue.retry(job.id, payload.to_json(), states=ENDED_STATES):
        raise InputError(f"Job {job.id} has started meanwhile; inspect it with `semiseg gateway show`.")
    found = queue.get(job.id)
    assert found is not None
    return found


def _require_study(state: Path, study: str, files: Sequence[str] = ()) -> None:
    folder = state / STUDIES_FOLDER / study
    if not study or not folder.is_dir() or not all((folder / file).exists() for file in files):
        raise InputError(f"Study {study} is not here any more; have it sent again.")
