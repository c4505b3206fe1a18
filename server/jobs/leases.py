"""Leases of jobs: a worker leases a job, renews the lease while it works, and ends the job or requeues it, once.

Leases are measured with the clock of the time since boot (:mod:`semiseg.system.boot_clock`), which cannot be set.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from semiseg.system import boot_clock
from server.jobs.database import Database, Execute
from server.jobs.job import JobState, LeaseState, QueuedJob, job_from_row
from server.jobs.lanes import Lane, OwnerScheduler

# Condition of a job that may be leased: it waits and its delay is over, or its lease has expired.
_FREE = "queue = :queue AND state IN ('waiting', 'running') AND (boot <> :boot OR due <= :now)"


class Leases:
    """The leases on the jobs of one file; they may be used from any thread and from several processes."""

    def __init__(self, database: Database, attempts: int) -> None:
        """Lease jobs of ``database``, each job at most ``attempts`` times."""
        self._database, self._attempts = database, attempts
        self._boot = boot_clock.boot_id()
        self._scheduler = OwnerScheduler()

    def lease(
        self,
        queue: str,
        seconds: float,
        ended: Callable[[QueuedJob, JobState], None] = lambda *_: None,
        *,
        lane: Lane | None = None,
        fair: bool = False,
    ) -> QueuedJob | None:
        """Lease the next free job for ``seconds``; None if there is none.

        Jobs that were started less often go first, so that a job that kills the process does not block the others;
        then jobs that were never requeued, then those whose delay ended first, so that jobs that fail repeatedly do not
        block later ones. Free jobs that are not to be started again end here, and ``ended`` is called for each.

        Args:
            queue: Kind of work.
            seconds: Length of the lease.
            ended: Function that is called with each job that ended here, and its state.
            lane: Lane from which jobs are taken; all jobs of the kind if None.
            fair: If True, owners take turns; otherwise jobs start in the order of their submission.
        """
        over: list[tuple[QueuedJob, JobState]] = []
        job = self._lease(queue, seconds, over, lane, fair)
        for one, state in over:
            ended(one, state)
        return job

    def _next(self, run: Execute, queue: str, lane: Lane | None, fair: bool) -> list[sqlite3.Row]:
        """The row of the job to start next, in a list; an empty list if there is none."""
        condition, values = ("1", {}) if lane is None else lane.condition()
        free, values = f"{_FREE} AND {condition}", values | {"queue": queue} | self._now()
        if not fair:
            return run(f"SELECT * FROM jobs WHERE {free} ORDER BY attempts, due, number LIMIT 1", values)
        found = run(
            f"SELECT owner, attempts, MIN(number) AS first FROM jobs WHERE {free} GROUP BY owner, attempts", values
        )
        if not found:
            return []
        fewest = min(row["attempts"] for row in found)
        firsts = {row["owner"]: row["first"] for row in found if row["attempts"] == fewest}
        return run("SELECT * FROM jobs WHERE number = ?", (self._scheduler.next_job_number(queue, firsts),))

    def _lease(
        self, queue: str, seconds: float, over: list[tuple[QueuedJob, JobState]], lane: Lane | None, fair: bool
    ) -> QueuedJob | None:
        with self._database.transaction() as run:
            while found := self._next(run, queue, lane, fair):
                job = job_from_row(found[0])
                if job.stop:
                    record_end(run, job.id, "cancelled", {})
                    over.append((job, "cancelled"))
                elif job.attempts >= self._attempts:
                    sentence = f"Given up: the program ended during each of the {job.attempts} attempts at this job."
                    record_end(run, job.id, "failed", {"error": sentence})
                    over.append((job, "failed"))
                else:
                    if fair:
                        self._scheduler.record_turn(queue, job.owner, run("SELECT MAX(number) FROM jobs")[0][0])
                    return job_from_row(
                        run(
                            "UPDATE jobs SET state = 'running', attempts = attempts + 1, lease = :lease, boot = :boot, "
                            "due = :now + :seconds, progress = '{}', changed = :day WHERE id = :id RETURNING *",
                            {
                                "lease": secrets.token_hex(16),
                                "seconds": seconds,
                                "day": time.time(),
                                "id": job.id,
                                **self._now(),
                            },
                        )[0]
                    )
        return None

    def renew(self, job: QueuedJob, seconds: float, progress: dict[str, Any]) -> LeaseState:
        """Extend a lease to ``seconds`` from now and store the progress of the work.

        Returns:
            State of the lease: ``held``; ``stop`` if the job is to be stopped; ``lost`` if another worker has the job.
        """
        with self._database.transaction() as run:
            rows = run(
                "UPDATE jobs SET due = :now + :seconds, progress = :progress WHERE id = :id AND lease = :lease "
                "RETURNING stop",
                {
                    "seconds": seconds,
                    "progress": json.dumps(progress),
                    "id": job.id,
                    "lease": job.lease,
                    "now": self._now()["now"],
                },
            )
        if not rows:
            return "lost"
        return "stop" if rows[0]["stop"] else "held"

    def end(self, job: QueuedJob, state: JobState, result: dict[str, Any]) -> bool:
        """End a leased job; return False and change nothing if another worker has taken it meanwhile."""
        with self._database.transaction() as run:
            if not run("SELECT 1 FROM jobs WHERE id = ? AND lease = ?", (job.id, job.lease)):
                return False
            record_end(run, job.id, state, result)
            return True

    def requeue(self, job: QueuedJob, *, after: float = 0.0, payload: dict[str, Any] | None = None) -> JobState | None:
        """Return a leased job to the queue, to be started again in ``after`` seconds, unless it was to be stopped.

        The start does not count as an attempt, because the process survived it. With ``payload`` the next attempt
        gets that payload.

        Returns:
            The new state, ``waiting`` or ``cancelled``; None if another worker has taken the job meanwhile.
        """
        with self._database.transaction() as run:
            rows = run(
                # A job that is requeued without a delay, as when its server stops, keeps its position.
                "UPDATE jobs SET state = 'waiting', lease = NULL, boot = :boot, "
                "due = IIF(:after > 0, :now + :after, 0), "
                "attempts = attempts - 1, payload = COALESCE(:payload, payload) WHERE id = :id AND lease = :lease "
                "RETURNING stop",
                {
                    "after": after,
                    "payload": None if payload is None else json.dumps(payload),
                    "id": job.id,
                    "lease": job.lease,
                    **self._now(),
                },
            )
            if not rows:
                return None
            if rows[0]["stop"]:
                record_end(run, job.id, "cancelled", {})
                return "cancelled"
            return "waiting"

    def release_all(self) -> None:
        """Cancel all leases; only to be called if no other process works on this file."""
        with self._database.transaction() as run:
            run("UPDATE jobs SET state = 'waiting', lease = NULL, due = 0 WHERE state = 'running'")

    def _now(self) -> dict[str, Any]:
        return {"now": boot_clock.seconds(), "boot": self._boot}


def record_end(run: Execute, id: str, state: JobState, result: dict[str, Any]) -> None:  # noqa: A002 - the field's name
    """Write the final state and the result of a job."""
    run(
        "UPDATE jobs SET state = ?, lease = NULL, result = ?, changed = ? WHERE id = ?",
        (state, json.dumps(result), time.time(), id),
    )
