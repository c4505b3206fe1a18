"""Jobs of the kind `study`: apply the rules to a complete study, or carry out an operator's decision on a conflict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from semiseg.volumes.dicom_index import index_files
from server.gateway.conflicts import ConflictChoice
from server.gateway.context import RECHECK_SECONDS, GatewayContext
from server.gateway.instance_store import delete
from server.gateway.job_kinds import DELIVER, SEGMENT, STUDY
from server.gateway.job_payloads import SegmentPayload, StudyPayload
from server.gateway.routing import RuleDecision, apply_rules, route_series
from server.gateway.study_list import redact_quotes
from server.jobs.lanes import Lane
from server.jobs.queue import QueuedJob
from server.jobs.worker import JobFailed, JobPostponed, RunningJob


class RouteStage:
    """Creates the `segment` jobs of studies; thread-safe."""

    def __init__(
        self, context: GatewayContext, *, is_open: Callable[[str], bool], complete: Callable[[str, str], None]
    ) -> None:
        """Configure the stage.

        Args:
            context: Shared objects of the gateway.
            is_open: Function that returns True while instances of a study are arriving.
            complete: Function that is called with the name of a complete study and the reason.
        """
        self._config, self._queue, self._instance_store = context.config, context.queue, context.instance_store
        self._series_name, self._audit, self._wake = context.series_name, context.audit, context.wake
        self._is_open, self._complete = is_open, complete
        self._results = context.results

    def run(self, task: RunningJob) -> dict[str, Any]:
        """Apply the rules to a study that is complete."""
        order = StudyPayload.from_job(task.job)
        name = order.study
        if (order.again or order.conflict) and self._is_open(name):
            raise JobPostponed("Instances of the study are arriving.", after=2.0)
        if any(one.created < task.job.created for one in self._queue.jobs("running", queue=STUDY, owner=name)):
            raise JobPostponed("The rules are being applied to the study.", after=RECHECK_SECONDS)
        if order.conflict:
            return self._settle(task.job, name, order.conflict)
        objects, _ = index_files(self._instance_store.instances(name))
        decisions = apply_rules(
            objects,
            self._instance_store.senders(name),
            self._config.rules,
            partial(self._instance_store.is_in_other_study, name),
        )
        put, late = [], 0
        # Waiting jobs are queried once, because a study may have thousands of series.
        before: dict[tuple[str, str], list[QueuedJob]] = {}
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=name):
            before.setdefault(_series_of(job), []).append(job)
        made = {} if order.decided else self._made_before(name)
        for scan in route_series(decisions, self._config):
            payload = scan.payload(name, self._series_name(scan.series))
            keys = made.get((payload.rule, payload.series), ())
            if keys and scan.key(name) not in keys:
                late += 1
                continue
            job = self._queue.put(SEGMENT, payload.to_json(), key=scan.key(name), owner=name)
            put.append(job.id)
            self._supersede(job, before.get((payload.rule, payload.series), ()))
            if order.again and job.state in ("failed", "cancelled"):
                self._queue.retry(job.id, SegmentPayload.from_job(job).without_failures().to_json())
        if order.again:
            self._stop_others(name, put)
        self._wake(SEGMENT)
        if late:
            self._instance_store.record_incomplete(
                name, "late", f"{late} series got more instances after a result was made."
            )
        told, quiet = decision_records(decisions, self._series_name)
        self._audit.record(
            "decided", study=name, instances=len(objects), decisions=quiet, jobs=put, **order.audit_fields()
        )
        return {"instances": len(objects), "decisions": told, "jobs": put}

    def _settle(self, job: QueuedJob, name: str, choice: ConflictChoice) -> dict[str, Any]:
        """Carry out an operator's decision on the conflict of a study, and have the rules applied again."""
        mine = [one for one in self._queue.jobs(owner=name) if one.queue in (STUDY, SEGMENT, DELIVER)]
        others = [one for one in mine if one.id != job.id]
        if choice == "new":  # waiting jobs belong to the version that is discarded
            for one in others:
                if not one.ended:
                    self._queue.stop(one.id)
        if any(one.state == "running" for one in others):
            raise JobPostponed("Another job of the study is running.", after=RECHECK_SECONDS)
        if not self._instance_store.instances(name):
            raise JobFailed("The study is not here any more.")
        self._instance_store.resolve_conflict(name, choice)
        if choice == "new":
            for one in others:  # so that the same jobs are created again
                delete(self._results / one.id, overwrite=self._config.retention.overwrite)
                self._queue.delete(one.id)
        self._audit.record("conflict decided", study=name, job=job.id, kept="newer" if choice == "new" else "earlier")
        self._complete(name, "an operator decided which version is kept")
        for kind in (SEGMENT, DELIVER):
            self._queue.change_waiting(kind, lambda one: one.payload, lane=Lane("study", (name,)), at_once=True)
            self._wake(kind)
        return {"kept": choice}

    def _supersede(self, newest: QueuedJob, before: Sequence[QueuedJob]) -> None:
        """Stop older jobs of the same rule and series that have not begun, because they lack the late instances."""
        for job in before:
            if job.id != newest.id and job.created < newest.created:
                self._queue.stop(job.id)
                self._audit.record("superseded", study=newest.owner, job=job.id, by=newest.id)

    def _stop_others(self, study: str, wanted: Sequence[str]) -> None:
        """Stop waiting jobs of a study that the rules do not create any more."""
        for job in self._queue.jobs("waiting", queue=SEGMENT, owner=study):
            if job.id not in wanted:
                self._queue.stop(job.id)
                self._audit.record("superseded", study=study, job=job.id, why="the rules do not select it any more")

    def _made_before(self, study: str) -> dict[tuple[str, str], set[str]]:
        """Return the keys of running and finished jobs, by rule and series; empty if a further result is permitted.

        They are queried once, because a study may have thousands of series.
        """
        found: dict[tuple[str, str], set[str]] = {}
        if self._config.completeness.late == "hold":
            for one in self._queue.jobs("running", "done", queue=SEGMENT, owner=study):
                found.setdefault(_series_of(one), set()).add(one.key or "")
        return found


def _series_of(job: QueuedJob) -> tuple[str, str]:
    """Return the rule and the series of a `segment` job."""
    scan = SegmentPayload.from_job(job)
    return scan.rule, scan.series


def decision_records(
    decisions: Sequence[RuleDecision], series_name: Callable[[str], str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return decisions for a job's result, and the same decisions for the audit log.

    Reasons quote Series Descriptions, which may name a patient: the job's result keeps them, the audit log does not.

    Args:
        decisions: Decisions of the rules.
        series_name: Function that returns the name of a series, by its UID.
    """
    told: list[dict[str, Any]] = [
        {"rule": one.rule, "series": series_name(one.series.uid), "fits": one.fits, "reason": one.reason}
        for one in decisions
    ]
    return told, [one | {"reason": redact_quotes(str(one["reason"]))} for one in told]
