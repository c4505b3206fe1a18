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
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from semiseg.errors import Cancelled, InputError
from semiseg.volumes.dicom_index import look_at
from server.gateway.audit import Audit
from server.gateway.backoff import Backoff, delay_after
from server.gateway.config import GatewayConfig, Retry
from server.gateway.conflicts import Choice
from server.gateway.delivery import Commitments, NotDelivered, deliver
from server.gateway.inbox import Inbox, delete
from server.gateway.names import Names
from server.gateway.outcome import Outcome
from server.gateway.retrieving import fetch
from server.gateway.routing import decide, orders
from server.gateway.segmenting import NotNow, Segmenting
from server.gateway.superseding import earlier_orders, mark
from server.jobs.database import QueueError
from server.jobs.lanes import Lane
from server.jobs.queue import Job, Queue, State
from server.jobs.worker import JobFailed, Postponed, Task

RESULTS = "results"  # a folder for each job of the kind `segment`
FETCH, STUDY, SEGMENT, DELIVER, PURGE = KINDS = ("fetch", "study", "segment", "deliver", "purge")
_LOG = logging.getLogger("semiseg.gateway")
# What a job's payload holds of its failures; `held` where others of its kind fail for the same reason.
TROUBLE = ("tries", "waited", "trouble", "held")
A_MOMENT = 1.5  # seconds by which the job that found a destination dead lets others go first
UNDECIDED = 30.0  # seconds after which a job looks again whether an operator has decided
WAIT = 1.0  # seconds after which a job asks again for what another one holds


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
        ended: Callable[[Job, State], None],
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
            ended: told of each job that ended while nobody worked on it.
        """
        self._config, self._queue, self._inbox, self._names = config, queue, inbox, names
        self._segmenting, self._commitments, self._audit = segmenting, commitments, audit
        self._is_open, self._complete, self._wake, self._ended = is_open, complete, wake, ended
        self.backoffs = {name: Backoff(one.retry or config.retry) for name, one in config.destinations.items()}
        self._no_server = False
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
        try:
            count = fetch(poll, told["uid"], self._inbox, task.cancelled)
        except NotDelivered as error:
            raise self._again(job, str(error)) from None
        self._audit.tell("fetched", study=told["study"], job=job.id, sender=poll.name, instances=count)
        if (conflict := self._inbox.conflict(told["study"])) is not None:
            self._audit.tell("conflict", sender=poll.name, study=told["study"], attributes=conflict.attributes)
        self._complete(told["study"], f"all {count} instances that {poll.name} has were fetched")
        return {"instances": count}

    def study(self, task: Task) -> dict[str, Any]:
        """Apply the rules to a study that is complete."""
        name, again = task.job.payload["study"], task.job.payload.get("again")
        choice = task.job.payload.get("conflict")
        if (again or choice) and self._is_open(name):
            raise Postponed("Something of the study is arriving.", after=2.0)
        if any(one.created < task.job.created for one in self._queue.jobs("running", queue=STUDY, owner=name)):
            raise Postponed("The study is being looked at.", after=WAIT)
        if choice:
            return self._settle(task.job, name, choice)
        objects, _ = look_at(self._inbox.instances(name))
        decisions = decide(objects, self._inbox.senders(name), self._config.rules, partial(self._inbox.elsewhere, name))
        put, late = [], 0
        before: dict[tuple[str, str], list[Job]] = {}  # looked up once: a study may have thousands of series
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=name):
            before.setdefault((job.payload["rule"], job.payload["series"]), []).append(job)
        made = self._made_before(task.job, name)
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
            keys = made.get((payload["rule"], payload["series"]), ())
            if keys and order.key(name) not in keys:
                late += 1
                continue
            job = self._queue.put(SEGMENT, payload, key=order.key(name), owner=name)
            put.append(job.id)
            self._supersede(job, before.get((payload["rule"], payload["series"]), ()))
            if again and job.state in ("failed", "cancelled"):
                self._queue.retry(job.id, tidied(job.payload))
        if again:
            self._stop_others(name, put)
        self._wake(SEGMENT)
        if late:
            self._inbox.hold(name, "late", f"{late} series got more instances after a result was made.")
        told = [
            {"rule": one.rule, "series": self._said(one.series.uid), "fits": one.fits, "reason": one.reason}
            for one in decisions
        ]
        # Reasons quote Series Descriptions, which have no business in a log; the job's result keeps them.
        quiet = [one | {"reason": re.sub("'.*'", "'...'", str(one["reason"]), flags=re.DOTALL)} for one in told]
        self._audit.tell(
            "decided", study=name, instances=len(objects), decisions=quiet, jobs=put, **_again_of(task.job)
        )
        return {"instances": len(objects), "decisions": told, "jobs": put}

    def segment(self, task: Task) -> dict[str, Any]:
        """Have one scan segmented."""
        job, told = task.job, task.job.payload
        folder = self.results / job.id
        files = [self._inbox.studies / told["study"] / name for name in told["files"]]
        if not all(file.exists() for file in files):
            raise JobFailed("The study is not here any more.")
        self._require_one_patient(told["study"])
        earlier = earlier_orders(self._queue, SEGMENT, job)
        if any(one.state == "running" for one in earlier):
            raise Postponed("The result before it is being made.", after=WAIT)
        folder.mkdir(exist_ok=True)
        try:
            made = self._segmenting.segment(files, told["forms"], told["model"], folder, task.cancelled)
        except NotNow as error:
            self._no_server = self._no_server or error.of_servers
            raise self._again(job, str(error), error.seconds, held=error.of_servers) from None
        except InputError as error:
            self._servers_answer()
            raise JobFailed(str(error)) from None
        self._servers_answer()
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
            # A series that an operator had segmented again is delivered again, whatever became of the first delivery.
            key = f"{job.key} {destination}" + (f" again {told['again']}" if told.get("again") else "")
            put.append(self._queue.put(DELIVER, payload, key=key, owner=told["study"]).id)
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
            **_again_of(job),
        )
        return {"server": made.server, "files": made.files, "jobs": put, **made.told}

    def deliver(self, task: Task) -> dict[str, Any]:
        """Send results to one archive."""
        job, told = task.job, task.job.payload
        destination = self._config.destinations.get(told["to"])
        if destination is None:
            raise self._again(job, f"The configuration has no destination {told['to']} any more.")
        self._require_one_patient(told["study"])
        # What it has is not sent again, and what it refused the last time goes last.
        taken, refused = list(told.get("taken", ())), told.get("refused", ())
        names = sorted((name for name in told["files"] if name not in taken), key=lambda name: name in refused)
        files = [self.results / told["of"] / name for name in names]
        if not all(file.exists() for file in files):
            raise JobFailed("The results are not here any more; have the series segmented again.")
        try:
            outcome = deliver(files, destination, self._config.ae_title, self._commitments, task.cancelled)
        except InputError as error:
            outcome = Outcome(trouble=str(error))
        taken += outcome.taken
        payload = told | {"taken": taken, "refused": list(outcome.refused)}
        if outcome.refused:
            payload["refused_since"] = told.get("refused_since") or time.time()
        told_of = {"study": told["study"], "job": job.id, "to": told["to"], **_again_of(job)}
        if outcome.remarks:
            told_of["remarks"] = outcome.remarks
        missing = len(told["files"]) - len(taken)
        if outcome.taken and missing:
            self._audit.tell("delivered in part", **told_of, instances=len(outcome.taken), missing=missing)
        if outcome.trouble:
            raise self._held_up(job, told["to"], payload, outcome)
        self._destination_answers(told["to"])
        if missing:
            raise self._again(job, outcome.sentence(), payload=payload)
        self._audit.tell("delivered", **told_of, instances=len(taken))
        return {"instances": len(taken)}

    def purge(self, task: Task) -> dict[str, Any]:
        """Delete a study, its results and its jobs, unless something of it is arriving or being worked on.

        A study that an archive listed is new afterwards, and is fetched again while the archive lists it, unless the
        job says ``for_good``.
        """
        name, told = task.job.payload["study"], task.job.payload
        fetches = self._queue.jobs(queue=FETCH, owner=name)
        for job in fetches:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in fetches):
            raise Postponed("The study is being fetched.", after=WAIT)
        jobs = [job for job in self._queue.jobs(owner=name) if job.queue not in (FETCH, PURGE)]
        for job in jobs:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in jobs):
            raise Postponed("Something of the study is being worked on.", after=1.0)
        if not self.forget(name, jobs):
            raise JobFailed("Something of the study is arriving; purge it when it is complete.")
        if told.get("fetch_again"):
            for job in fetches:
                self._queue.forget(job.id)
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

    def _settle(self, job: Job, name: str, choice: Choice) -> dict[str, Any]:
        """Do what an operator decided about two versions of a study, and have it decided on anew."""
        mine = [one for one in self._queue.jobs(owner=name) if one.queue in (STUDY, SEGMENT, DELIVER)]
        others = [one for one in mine if one.id != job.id]
        if choice == "new":  # what waits is of the version that goes
            for one in others:
                if not one.ended:
                    self._queue.stop(one.id)
        if any(one.state == "running" for one in others):
            raise Postponed("Something of the study is being worked on.", after=WAIT)
        if not self._inbox.instances(name):
            raise JobFailed("The study is not here any more.")
        self._inbox.decide(name, choice)
        if choice == "new":
            for one in others:  # so that the same orders are made again
                delete(self.results / one.id, overwrite=self._config.keep.overwrite)
                self._queue.forget(one.id)
        self._audit.tell("conflict decided", study=name, job=job.id, kept="newer" if choice == "new" else "earlier")
        self._complete(name, "an operator decided which version of it counts")
        for kind in (SEGMENT, DELIVER):
            self._queue.change_waiting(kind, lambda one: one.payload, lane=Lane("study", (name,)), at_once=True)
            self._wake(kind)
        return {"kept": choice}

    def _require_one_patient(self, study: str) -> None:
        """Wait while an operator has to decide of which patient a study is: its result may be another patient's."""
        if self._config.complete.patients == "hold" and self._inbox.is_of_two_patients(study):
            raise Postponed("The study has instances of two patients, and waits for a decision.", after=UNDECIDED)

    def _supersede(self, newest: Job, before: Sequence[Job]) -> None:
        """Stop older orders of the same rule and series that nobody has begun: they lack what came late."""
        for job in before:
            if job.id != newest.id and job.created < newest.created:
                self._queue.stop(job.id)
                self._audit.tell("superseded", study=newest.owner, job=job.id, by=newest.id)

    def _stop_others(self, study: str, wanted: Sequence[str]) -> None:
        """Stop orders of a study that wait, and that the rules do not make any more."""
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=study):
            if job.id not in wanted:
                self._queue.stop(job.id)
                self._audit.tell("superseded", study=study, job=job.id, why="the rules do not ask for it any more")

    def _made_before(self, job: Job, study: str) -> dict[tuple[str, str], set[str]]:
        """The keys of orders that were begun or done, by rule and series; none where another result may be made.

        They are looked up once, because a study may have thousands of series.
        """
        found: dict[tuple[str, str], set[str]] = {}
        if self._config.complete.late == "hold" and not job.payload.get("decided"):
            for one in self._queue.jobs("running", "done", queue=SEGMENT, owner=study):
                found.setdefault((one.payload["rule"], one.payload["series"]), set()).add(one.key or "")
        return found

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

    def _again(
        self,
        job: Job,
        sentence: str,
        at_least: float = 0.0,
        *,
        payload: dict[str, Any] | None = None,
        held: bool = False,
    ) -> Postponed | JobFailed:
        """The next try of a job that others do not let be done: later each time, and not for ever."""
        retry = self._retry_of(job)
        tries = job.payload.get("tries", 0) + 1
        delay = delay_after(tries, retry, at_least)
        return self._postponed(job, sentence, delay, (payload or job.payload) | {"held": held})

    def _postponed(self, job: Job, sentence: str, delay: float, payload: dict[str, Any]) -> Postponed | JobFailed:
        tries, waited = payload.get("tries", 0) + 1, payload.get("waited", 0.0)
        retry = self._retry_of(job)
        if waited > retry.hours * 3600:
            return JobFailed(_given_up(tries, retry.hours, sentence))
        to = {"to": payload["to"]} if job.queue == DELIVER else {}
        self._audit.tell(
            "failed",
            study=payload.get("study", ""),
            job=job.id,
            kind=job.queue,
            **to,
            tries=tries,
            why=sentence,
            again_in=round(delay, 1),
        )
        # What it waited is added up: the time of day may be set, and a gateway that is stopped does not try.
        payload = payload | {"tries": tries, "waited": waited + delay, "trouble": sentence}
        return Postponed(sentence, after=delay, payload=payload)

    def _held_up(self, job: Job, name: str, payload: dict[str, Any], outcome: Outcome) -> Postponed | JobFailed:
        """The next try of a delivery to a destination that is not well; all that waits for it is told."""
        sentence, retry = outcome.sentence(), self._retry_of(job)
        was_ready = self.backoffs[name].ready()
        delay = self.backoffs[name].failed(outcome.trouble, outcome.wait_seconds)
        if was_ready:  # once, however many find out at the same time
            self._queue.change_waiting(
                DELIVER,
                lambda one: (
                    one.payload
                    | {
                        "tries": one.payload.get("tries", 0) + 1,
                        "waited": one.payload.get("waited", 0.0) + delay,
                        "trouble": outcome.trouble,
                        "held": True,
                    }
                ),
                lane=Lane("to", (name,)),
            )
            for one in self._queue.jobs("waiting", queue=DELIVER):
                if one.payload["to"] == name and one.payload.get("waited", 0.0) > retry.hours * 3600:
                    told = _given_up(one.payload["tries"], retry.hours, outcome.trouble)
                    if self._queue.fail_waiting(one.id, {"error": told}):
                        self._ended(one, "failed")
        # Where one result is what the destination stumbles over, another one is tried first after the delay.
        return self._postponed(job, sentence, delay + min(delay, A_MOMENT), payload | {"held": True})

    def _destination_answers(self, name: str) -> None:
        if self.backoffs[name].worked():
            self.release_held(DELIVER, Lane("to", (name,)))
            self._audit.tell("destination answers again", to=name)

    def _servers_answer(self) -> None:
        if self._no_server:
            self._no_server = False
            self.release_held(SEGMENT)

    def release_held(self, kind: str, lane: Lane | None = None) -> None:
        """Let everything be tried at once that waited for a destination, or for the servers, to be well again."""
        self._queue.change_waiting(
            kind,
            lambda job: (
                {k: v for k, v in job.payload.items() if k not in ("tries", "trouble", "held")}
                if job.payload.get("held")
                else None
            ),
            lane=lane,
            at_once=True,
        )
        self._wake(kind)

    def _retry_of(self, job: Job) -> Retry:
        backoff = self.backoffs.get(job.payload["to"]) if job.queue == DELIVER else None
        return self._config.retry if backoff is None else backoff.retry

    def _said(self, uid: str) -> str:
        return uid if self._config.reveal_uids else self._names.of(uid)


def _again_of(job: Job) -> dict[str, Any]:
    """For the audit log, how often an operator had the job's work done again."""
    return {"again": job.payload["again"]} if job.payload.get("again") else {}


def _given_up(tries: int, hours: float, sentence: str) -> str:
    return f"Given up after {tries} tries in {hours:g} hours. {sentence}"


def tidied(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload of a job that begins anew, without what it had failed of."""
    return {name: value for name, value in payload.items() if name not in (*TROUBLE, "refused", "refused_since")}
