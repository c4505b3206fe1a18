"""What the jobs of the queue do: decide on a study, have its scans segmented, deliver what was made, forget it all.

    fetch     an archive's study into the inbox
    study     which series goes where; a `segment` job for each order
    segment   a scan to a server; its results to results/JOB/; a `deliver` job for each destination
    deliver   results to one archive
    purge     everything of one study

Each puts the next ones into the queue before it ends, under keys that say what they are about: one that is killed
half-way and begins again finds what it has put in already.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from semiseg.errors import Cancelled, InputError
from semiseg.volumes.dicom_index import look_at
from server.gateway.audit import Audit
from server.gateway.config import GatewayConfig
from server.gateway.delivery import Commitments, NotDelivered, deliver
from server.gateway.inbox import Inbox, delete
from server.gateway.names import Names
from server.gateway.retrieving import fetch
from server.gateway.routing import decide, orders
from server.gateway.segmenting import NotNow, Segmenting
from server.gateway.superseding import earlier_orders, mark
from server.jobs.database import QueueError
from server.jobs.queue import Job, Queue
from server.jobs.worker import JobFailed, Postponed, Task

RESULTS = "results"  # a folder for each job of the kind `segment`
FETCH, STUDY, SEGMENT, DELIVER, PURGE = KINDS = ("fetch", "study", "segment", "deliver", "purge")
_LOG = logging.getLogger("semiseg.gateway")
WAIT, WAIT_FOR_ARCHIVE = 1.0, 5.0  # seconds after which a job asks again for what another one holds
TROUBLE = ("tries", "waited", "trouble")  # what a job's payload holds of its failures


class Work:
    """The work of each kind; its methods are run by workers."""

    def __init__(
        self,
        config: GatewayConfig,
        queue: Queue,
        inbox: Inbox,
        names: Names,
        segmenting: Segmenting,
        commitments: Commitments,
        audit: Audit,
        *,
        is_open: Callable[[str], bool],
        complete: Callable[[str, str], None],
        wake: Callable[[str], None],
    ) -> None:
        """Do nothing yet.

        Args:
            config: the configuration.
            queue: where the jobs are.
            inbox: where the studies are.
            names: what UIDs are called.
            segmenting: asks servers.
            commitments: where reports of storage commitment arrive.
            audit: told of everything.
            is_open: whether something of a study is arriving.
            complete: told that a study is complete, and why.
            wake: told of the kind of each new job.
        """
        self._config, self._queue, self._inbox, self._names = config, queue, inbox, names
        self._segmenting, self._commitments, self._audit = segmenting, commitments, audit
        self._is_open, self._complete, self._wake = is_open, complete, wake
        self._fetching = {poll.url: threading.Lock() for poll in config.polls}
        self.results = config.state / RESULTS
        self.results.mkdir(exist_ok=True)

    def steadily(self, work: Callable[[Task], dict[str, Any]]) -> Callable[[Task], dict[str, Any]]:
        """``work``, tried again later when it fails in a way that nobody foresaw."""

        def worked(task: Task) -> dict[str, Any]:
            try:
                return work(task)
            except (JobFailed, Postponed, Cancelled, QueueError):
                raise
            except Exception as error:  # noqa: BLE001 - one study must not stop the others
                _LOG.error("A job of the kind %s failed", task.job.queue, exc_info=True)
                name = type(error).__name__
                raise self._again(task.job, f"It failed in an unforeseen way ({name}); the log says where.") from None

        return worked

    def fetch(self, task: Task) -> dict[str, Any]:
        """Bring a study from an archive that is asked."""
        job, told = task.job, task.job.payload
        poll = next((poll for poll in self._config.polls if poll.url == told["url"]), None)
        if poll is None:
            raise JobFailed(f"The configuration does not ask {told['url']} any more.")
        place = self._fetching[poll.url]
        if not place.acquire(blocking=False):  # an archive that hangs holds up no other one
            raise Postponed("Another study of this archive is being fetched.", after=WAIT_FOR_ARCHIVE)
        try:
            count = fetch(poll, told["uid"], self._inbox, task.cancelled)
        except NotDelivered as error:
            raise self._again(job, str(error)) from None
        finally:
            place.release()
        self._audit.tell("fetched", study=told["study"], job=job.id, sender=poll.name, instances=count)
        self._complete(told["study"], f"all {count} instances that {poll.name} has were fetched")
        return {"instances": count}

    def study(self, task: Task) -> dict[str, Any]:
        """Apply the rules to a study that is complete."""
        name = task.job.payload["study"]
        objects, _ = look_at(self._inbox.instances(name))
        decisions = decide(objects, self._inbox.senders(name), self._config.rules, partial(self._inbox.elsewhere, name))
        put, late = [], 0
        for order in orders(decisions, self._config):
            payload = {
                "study": name,
                "rule": order.rule.name,
                "series": self._said(order.series),
                "model": order.rule.model,
                "files": order.files,
                "forms": order.forms,
                "to": order.to,
            }
            if self._is_late(task.job, name, payload, order.key(name)):
                late += 1
                continue
            job = self._queue.put(SEGMENT, payload, key=order.key(name), owner=name)
            put.append(job.id)
            self._supersede(job)
        self._wake(SEGMENT)
        if late:
            self._inbox.hold(name, "late", f"{late} series got more instances after a result was made.")
        told = [
            {"rule": one.rule, "series": self._said(one.series.uid), "fits": one.fits, "reason": one.reason}
            for one in decisions
        ]
        # Reasons quote Series Descriptions, which have no business in a log; the job's result keeps them.
        quiet = [one | {"reason": re.sub("'.*'", "'...'", str(one["reason"]), flags=re.DOTALL)} for one in told]
        self._audit.tell("decided", study=name, instances=len(objects), decisions=quiet, jobs=put)
        return {"instances": len(objects), "decisions": told, "jobs": put}

    def segment(self, task: Task) -> dict[str, Any]:
        """Have one scan segmented."""
        job, told = task.job, task.job.payload
        folder = self.results / job.id
        files = [self._inbox.studies / told["study"] / name for name in told["files"]]
        if not all(file.exists() for file in files):
            raise JobFailed("The study is not here any more.")
        earlier = earlier_orders(self._queue, SEGMENT, job)
        if any(one.state == "running" for one in earlier):
            raise Postponed("The result before it is being made.", after=WAIT)
        folder.mkdir(exist_ok=True)
        try:
            made = self._segmenting.segment(files, told["forms"], told["model"], folder, task.cancelled)
        except NotNow as error:
            raise self._again(job, str(error), error.seconds) from None
        except InputError as error:
            raise JobFailed(str(error)) from None
        if task.cancelled():
            raise Cancelled("The job was stopped.")
        superseded = self._superseded(job, earlier, made.files)
        put = []
        for destination, forms in told["to"].items():
            payload = {
                "study": told["study"],
                "rule": told["rule"],
                "of": job.id,
                "files": [file for form in forms for file in made.files[form]],
                "to": destination,
            }
            put.append(self._queue.put(DELIVER, payload, key=f"{job.key} {destination}", owner=told["study"]).id)
        self._wake(DELIVER)
        self._audit.tell(
            "segmented",
            study=told["study"],
            job=job.id,
            rule=told["rule"],
            server=made.server,
            jobs=put,
            supersedes=superseded,
            **made.told,
        )
        return {"server": made.server, "files": made.files, "jobs": put, **made.told}

    def deliver(self, task: Task) -> dict[str, Any]:
        """Send results to one archive."""
        job, told = task.job, task.job.payload
        destination = self._config.destinations.get(told["to"])
        if destination is None:
            raise self._again(job, f"The configuration has no destination {told['to']} any more.")
        files = [self.results / told["of"] / name for name in told["files"]]
        if not all(file.exists() for file in files):
            raise JobFailed("The results are not here any more.")
        try:
            count = deliver(files, destination, self._config.ae_title, self._commitments)
        except (NotDelivered, InputError) as error:
            raise self._again(job, str(error)) from None
        self._audit.tell("delivered", study=told["study"], job=job.id, to=told["to"], instances=count)
        return {"instances": count}

    def purge(self, task: Task) -> dict[str, Any]:
        """Delete a study, its results and its jobs, unless something of it is arriving or being worked on."""
        name = task.job.payload["study"]
        jobs = [job for job in self._queue.jobs(owner=name) if job.queue not in (FETCH, PURGE)]
        for job in jobs:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in jobs):
            raise Postponed("Something of the study is being worked on.", after=1.0)
        if not self.forget(name, jobs):
            raise JobFailed("Something of the study is arriving; purge it when it is complete.")
        self._audit.tell("purged", study=name, why=task.job.payload["why"])
        return {}

    def forget(self, name: str, jobs: list[Job]) -> bool:
        """Delete a study and what its ``jobs`` left; False when something of it is arriving."""
        if not self._inbox.remove(name, lambda: self._is_open(name), overwrite=self._config.keep.overwrite):
            return False
        for job in jobs:
            delete(self.results / job.id, overwrite=self._config.keep.overwrite)
            self._queue.forget(job.id)
        return True

    def _supersede(self, newest: Job) -> None:
        """Stop older orders of the same rule and series that nobody has begun: they lack what came late."""
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=newest.owner):
            same = all(job.payload[field] == newest.payload[field] for field in ("rule", "series"))
            if same and job.id != newest.id and job.created < newest.created:
                self._queue.stop(job.id)
                self._audit.tell("superseded", study=newest.owner, job=job.id, by=newest.id)

    def _is_late(self, job: Job, study: str, payload: dict[str, Any], key: str) -> bool:
        """Whether an order is for a series that has a result already, and nobody decided to have another."""
        if self._config.complete.late != "hold" or job.payload.get("decided"):
            return False
        jobs = self._queue.jobs("running", "done", queue=SEGMENT, owner=study)
        same = [one for one in jobs if all(one.payload[name] == payload[name] for name in ("rule", "series"))]
        return bool(same) and all(one.key != key for one in same)

    def _superseded(self, job: Job, earlier: list[Job], files: dict[str, list[str]]) -> list[str]:
        """Mark a result as superseding earlier ones, and stop deliveries of those that have not begun.

        Returns:
            The jobs whose results an archive may have.
        """
        if not earlier:
            return []
        there = set()
        for delivery in self._queue.jobs(queue=DELIVER, owner=job.payload["study"]):
            if delivery.payload["of"] not in {one.id for one in earlier}:
                continue
            if not delivery.ended:  # one that is running ends with its present try
                self._queue.stop(delivery.id)
                self._audit.tell("superseded", study=job.payload["study"], job=delivery.id, by=job.id)
            # One that was tried may have brought a part of it.
            if delivery.state != "cancelled" and (delivery.state != "waiting" or delivery.payload.get("tries")):
                there.add(delivery.payload["of"])
        known = [one for one in earlier if one.id in there and one.state == "done"]
        if known:
            before = [
                self.results / known[-1].id / name for names in known[-1].result["files"].values() for name in names
            ]
            mark(
                [self.results / job.id / name for names in files.values() for name in names],
                [file for file in before if file.exists()],
                len(known) + 1,
            )
        return [one.id for one in known]

    def _again(self, job: Job, sentence: str, at_least: float = 0.0) -> Postponed | JobFailed:
        """The next try of a job that others do not let be done: later each time, and not for ever."""
        retry, study = self._config.retry, job.payload.get("study", "")
        tries, waited = job.payload.get("tries", 0) + 1, job.payload.get("waited", 0.0)
        if waited > retry.hours * 3600:
            return JobFailed(f"Given up after {tries} tries in {retry.hours:g} hours. {sentence}")
        delay = min(retry.first_seconds * 2 ** min(tries - 1, 30), retry.longest_seconds) * random.uniform(0.75, 1.25)
        delay = max(delay, at_least)
        self._audit.tell(
            "failed", study=study, job=job.id, kind=job.queue, tries=tries, why=sentence, again_in=round(delay, 1)
        )
        # What it waited is added up: the time of day may be set, and a gateway that is stopped does not try.
        payload = job.payload | {"tries": tries, "waited": waited + delay, "trouble": sentence}
        return Postponed(sentence, after=delay, payload=payload)

    def _said(self, uid: str) -> str:
        return uid if self._config.reveal_uids else self._names.of(uid)


def tidied(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload of a job that begins anew, without what it had failed of."""
    return {name: value for name, value in payload.items() if name not in TROUBLE}
