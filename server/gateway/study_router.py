"""The job `study`: rules are applied to a study that is complete, or an operator's decision is carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from semiseg.volumes.dicom_index import index_files
from server.gateway.conflicts import ConflictChoice
from server.gateway.context import GatewayContext
from server.gateway.instance_store import delete
from server.gateway.job_kinds import DELIVER, RESULTS_FOLDER, SEGMENT, STUDY, repeat_field, without_failures
from server.gateway.routing import RuleDecision, apply_rules, route_series
from server.gateway.study_list import redact_quotes
from server.jobs.lanes import Lane
from server.jobs.queue import QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob

RECHECK_SECONDS = 1.0  # seconds after which a job asks again for what another one holds


class StudyRouter:
    """Makes the orders of studies; to be used from any thread."""

    def __init__(
        self, context: GatewayContext, *, is_open: Callable[[str], bool], complete: Callable[[str, str], None]
    ) -> None:
        """Apply the rules of the configuration.

        Args:
            context: The gateway's parts.
            is_open: Function that returns True while something of a study is arriving.
            complete: Function that is told that a study is complete, and why.
        """
        self._config, self._queue, self._instance_store = context.config, context.queue, context.instance_store
        self._series_name, self._audit, self._wake = context.series_name, context.audit, context.wake
        self._is_open, self._complete = is_open, complete
        self._results = context.config.state / RESULTS_FOLDER

    def route(self, task: RunningJob) -> dict[str, Any]:
        """Apply the rules to a study that is complete."""
        name, again = task.job.payload["study"], task.job.payload.get("again")
        choice = task.job.payload.get("conflict")
        if (again or choice) and self._is_open(name):
            raise JobPostponed("Something of the study is arriving.", after=2.0)
        if any(one.created < task.job.created for one in self._queue.jobs("running", queue=STUDY, owner=name)):
            raise JobPostponed("The study is being looked at.", after=RECHECK_SECONDS)
        if choice:
            return self._settle(task.job, name, choice)
        objects, _ = index_files(self._instance_store.instances(name))
        decisions = apply_rules(
            objects,
            self._instance_store.senders(name),
            self._config.rules,
            partial(self._instance_store.is_in_other_study, name),
        )
        put, late = [], 0
        before: dict[tuple[str, str], list[QueuedJob]] = {}  # looked up once: a study may have thousands of series
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=name):
            before.setdefault((job.payload["rule"], job.payload["series"]), []).append(job)
        made = self._made_before(task.job, name)
        for order in route_series(decisions, self._config):
            payload = order.payload(name, self._series_name(order.series))
            keys = made.get((payload["rule"], payload["series"]), ())
            if keys and order.key(name) not in keys:
                late += 1
                continue
            job = self._queue.put(SEGMENT, payload, key=order.key(name), owner=name)
            put.append(job.id)
            self._supersede(job, before.get((payload["rule"], payload["series"]), ()))
            if again and job.state in ("failed", "cancelled"):
                self._queue.retry(job.id, without_failures(job.payload))
        if again:
            self._stop_others(name, put)
        self._wake(SEGMENT)
        if late:
            self._instance_store.record_incomplete(
                name, "late", f"{late} series got more instances after a result was made."
            )
        told, quiet = decision_records(decisions, self._series_name)
        self._audit.record(
            "decided", study=name, instances=len(objects), decisions=quiet, jobs=put, **repeat_field(task.job)
        )
        return {"instances": len(objects), "decisions": told, "jobs": put}

    def _settle(self, job: QueuedJob, name: str, choice: ConflictChoice) -> dict[str, Any]:
        """Do what an operator decided about two versions of a study, and have it decided on anew."""
        mine = [one for one in self._queue.jobs(owner=name) if one.queue in (STUDY, SEGMENT, DELIVER)]
        others = [one for one in mine if one.id != job.id]
        if choice == "new":  # what waits is of the version that goes
            for one in others:
                if not one.ended:
                    self._queue.stop(one.id)
        if any(one.state == "running" for one in others):
            raise JobPostponed("Something of the study is being worked on.", after=RECHECK_SECONDS)
        if not self._instance_store.instances(name):
            raise JobFailed("The study is not here any more.")
        self._instance_store.resolve_conflict(name, choice)
        if choice == "new":
            for one in others:  # so that the same orders are made again
                delete(self._results / one.id, overwrite=self._config.keep.overwrite)
                self._queue.delete(one.id)
        self._audit.record("conflict decided", study=name, job=job.id, kept="newer" if choice == "new" else "earlier")
        self._complete(name, "an operator decided which version of it counts")
        for kind in (SEGMENT, DELIVER):
            self._queue.change_waiting(kind, lambda one: one.payload, lane=Lane("study", (name,)), at_once=True)
            self._wake(kind)
        return {"kept": choice}

    def _supersede(self, newest: QueuedJob, before: Sequence[QueuedJob]) -> None:
        """Stop older orders of the same rule and series that nobody has begun: they lack what came late."""
        for job in before:
            if job.id != newest.id and job.created < newest.created:
                self._queue.stop(job.id)
                self._audit.record("superseded", study=newest.owner, job=job.id, by=newest.id)

    def _stop_others(self, study: str, wanted: Sequence[str]) -> None:
        """Stop orders of a study that wait, and that the rules do not make any more."""
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=study):
            if job.id not in wanted:
                self._queue.stop(job.id)
                self._audit.record("superseded", study=study, job=job.id, why="the rules do not ask for it any more")

    def _made_before(self, job: QueuedJob, study: str) -> dict[tuple[str, str], set[str]]:
        """The keys of orders that were begun or done, by rule and series; none where another result may be made.

        They are looked up once, because a study may have thousands of series.
        """
        found: dict[tuple[str, str], set[str]] = {}
        if self._config.complete.late == "hold" and not job.payload.get("decided"):
            for one in self._queue.jobs("running", "done", queue=SEGMENT, owner=study):
                found.setdefault((one.payload["rule"], one.payload["series"]), set()).add(one.key or "")
        return found


def decision_records(
    decisions: Sequence[RuleDecision], series_name: Callable[[str], str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Decisions as a job's result keeps them, and the same for the audit log.

    Reasons quote Series Descriptions, which have no business in a log; the job's result keeps them.

    Args:
        decisions: Decisions of the rules.
        series_name: Function that returns the name of a series, by its UID.
    """
    told: list[dict[str, Any]] = [
        {"rule": one.rule, "series": series_name(one.series.uid), "fits": one.fits, "reason": one.reason}
        for one in decisions
    ]
    return told, [one | {"reason": redact_quotes(str(one["reason"]))} for one in told]
