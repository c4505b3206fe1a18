"""The job `study`: rules are applied to a study that is complete, or an operator's decision is carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from semiseg.volumes.dicom_index import look_at
from server.gateway.audit import Audit
from server.gateway.config import GatewayConfig
from server.gateway.conflicts import Choice
from server.gateway.inbox import Inbox, delete
from server.gateway.kinds import DELIVER, RESULTS, SEGMENT, STUDY, again_of, tidied
from server.gateway.names import Names
from server.gateway.routing import decide, orders
from server.gateway.study_list import quoteless
from server.jobs.lanes import Lane
from server.jobs.queue import Job, Queue
from server.jobs.worker import JobFailed, Postponed, Task

WAIT = 1.0  # seconds after which a job asks again for what another one holds


class Deciding:
    """Makes the orders of studies; to be used from any thread."""

    def __init__(
        self,
        config: GatewayConfig,
        queue: Queue,
        inbox: Inbox,
        names: Names,
        audit: Audit,
        *,
        is_open: Callable[[str], bool],
        complete: Callable[[str, str], None],
        wake: Callable[[str], None],
    ) -> None:
        """Apply the rules of ``config``; the other arguments are those of :class:`server.gateway.work.Work`."""
        self._config, self._queue, self._inbox, self._names, self._audit = config, queue, inbox, names, audit
        self._is_open, self._complete, self._wake = is_open, complete, wake
        self._results = config.state / RESULTS

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
        quiet = [one | {"reason": quoteless(str(one["reason"]))} for one in told]
        self._audit.tell("decided", study=name, instances=len(objects), decisions=quiet, jobs=put, **again_of(task.job))
        return {"instances": len(objects), "decisions": told, "jobs": put}

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
                delete(self._results / one.id, overwrite=self._config.keep.overwrite)
                self._queue.forget(one.id)
        self._audit.tell("conflict decided", study=name, job=job.id, kept="newer" if choice == "new" else "earlier")
        self._complete(name, "an operator decided which version of it counts")
        for kind in (SEGMENT, DELIVER):
            self._queue.change_waiting(kind, lambda one: one.payload, lane=Lane("study", (name,)), at_once=True)
            self._wake(kind)
        return {"kept": choice}

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

    def _said(self, uid: str) -> str:
        return uid if self._config.reveal_uids else self._names.of(uid)
