"""A durable queue in one SQLite file: an accepted job ends exactly once, even if the process is killed.

A worker holds a lease on its job and renews it while it works (a heartbeat). When the lease expires, or its holder is
known to be gone, another worker may take the job. Only the holder of the current lease can end it, so a worker that
returns late changes nothing. A job that was started and not ended `attempts` times is given up, because it may be the
cause of the crashes.

Leases and delays are measured with the clock of the time since boot, which cannot be set; after a reboot all of them
are over (:mod:`semiseg.system.boot_clock` describes systems other than Linux). The time of day is stored only for
display and for retention.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semiseg.errors import SemisegError
from server.jobs.database import Database
from server.jobs.job import ENDED_STATES as ENDED_STATES
from server.jobs.job import MIGRATIONS, SCHEMA, STATES, job_from_row
from server.jobs.job import SCHEMA_VERSION as SCHEMA_VERSION
from server.jobs.job import JobState as JobState
from server.jobs.job import LeaseState as LeaseState
from server.jobs.job import QueuedJob as QueuedJob
from server.jobs.lanes import Lane
from server.jobs.leases import Leases, record_end


class QueueFull(SemisegError):  # noqa: N818 - a temporary state
    """The limit of waiting jobs is reached: ``limit`` jobs of one ``owner``, or of all owners if that is None."""

    def __init__(self, limit: int, owner: str | None) -> None:
        whose = "jobs" if owner is None else "of your jobs"
        super().__init__(f"{limit} {whose} are waiting already, which is the limit; try again later.")


class Queue(Leases):
    """The jobs of one file; it may be used from any thread and from several processes."""

    def __init__(self, file: Path, *, attempts: int = 10) -> None:
        """Open or create the file.

        Args:
            file: File of the database; SQLite keeps two more files beside it.
            attempts: Number of times that a job is started before it is given up.

        Raises:
            InputError: The file is not a job database, or its version cannot be migrated to this one.
            QueueError: The file cannot be opened or written.
        """
        super().__init__(Database(file, SCHEMA, SCHEMA_VERSION, MIGRATIONS), attempts)

    def copy_to(self, file: Path) -> None:
        """Write a copy of the current state into a file.

        Raises:
            QueueError: The database cannot be read, or the copy cannot be written.
        """
        self._database.copy_to(file)

    def close(self) -> None:
        """Close the file; leases stay as they are."""
        self._database.close()

    def put(
        self,
        queue: str,
        payload: dict[str, Any],
        *,
        id: str | None = None,  # noqa: A002 - the field's name
        key: str | None = None,
        owner: str = "",
        max_waiting: int | None = None,
        max_waiting_of_owner: int | None = None,
        lane: Lane | None = None,
    ) -> QueuedJob:
        """Add a job and return it; when this returns, the job is on the disk.

        If the queue has a job with the same ``key``, that job is returned and nothing is added. Otherwise at most
        ``max_waiting`` jobs may wait, and ``max_waiting_of_owner`` jobs of one owner; with a ``lane``, the second limit
        counts the jobs of the lane instead.

        Raises:
            QueueFull: A limit of waiting jobs is reached.
            QueueError: The job could not be written.
        """
        now = time.time()
        row = (id or secrets.token_hex(16), queue, key, owner, "waiting", json.dumps(payload), now, now)
        with self._database.transaction() as run:
            if key is not None and (there := run("SELECT * FROM jobs WHERE queue = ? AND key = ?", (queue, key))):
                return job_from_row(there[0])
            mine = lane.condition() if lane else ("owner = :owner", {"owner": owner})
            for limit, whose, (condition, values) in (
                (max_waiting, None, ("1", {})),
                (max_waiting_of_owner, owner, mine),
            ):
                if limit is not None:
                    count = f"SELECT COUNT(*) FROM jobs WHERE queue = :queue AND state = 'waiting' AND {condition}"
                    if run(count, values | {"queue": queue})[0][0] >= limit:
                        raise QueueFull(limit, whose)
            names = "id, queue, key, owner, state, payload, created, changed"
            return job_from_row(run(f"INSERT INTO jobs ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING *", row)[0])

    def retry(
        self,
        id: str,  # noqa: A002 - the field's name
        payload: dict[str, Any] | None = None,
        *,
        states: Sequence[JobState] = ("failed", "cancelled"),
    ) -> bool:
        """Restart a job that has ended in one of ``states``, with the new ``payload`` if one is given."""
        with self._database.transaction() as run:
            return bool(
                run(
                    "UPDATE jobs SET state = 'waiting', attempts = 0, due = 0, stop = 0, result = '{}', changed = ?, "
                    f"payload = COALESCE(?, payload) WHERE id = ? AND state IN ({', '.join('?' * len(states))}) "
                    "RETURNING 1",
                    (time.time(), None if payload is None else json.dumps(payload), id, *states),
                )
            )

    def change_waiting(
        self,
        queue: str,
        change: Callable[[QueuedJob], dict[str, Any] | None],
        *,
        lane: Lane | None = None,
        at_once: bool = False,
    ) -> int:
        """Change the payload of waiting jobs, for an event at one job that concerns all jobs of its lane.

        Args:
            queue: Kind of work.
            change: Function that returns the new payload of a job, or None for a job that stays as it is.
            lane: Lane whose jobs are changed; all jobs of the kind if None.
            at_once: If True, the changed jobs may start now, regardless of their delay.

        Returns:
            The number of jobs changed.
        """
        condition, values = ("1", {}) if lane is None else lane.condition()
        changed = 0
        with self._database.transaction() as run:
            rows = run(
                f"SELECT * FROM jobs WHERE queue = :queue AND state = 'waiting' AND {condition}",
                values | {"queue": queue},
            )
            for row in rows:
                payload = change(job_from_row(row))
                if payload is not None:
                    due = 0.0 if at_once else row["due"]
                    run("UPDATE jobs SET payload = ?, due = ? WHERE id = ?", (json.dumps(payload), due, row["id"]))
                    changed += 1
        return changed

    def fail_waiting(self, id: str, result: dict[str, Any]) -> bool:  # noqa: A002 - the field's name
        """End a waiting job as failed; return False if it is running or has ended."""
        with self._database.transaction() as run:
            if not run("SELECT 1 FROM jobs WHERE id = ? AND state = 'waiting'", (id,)):
                return False
            record_end(run, id, "failed", result)
            return True

    def stop(self, id: str) -> QueuedJob | None:  # noqa: A002 - the field's name
        """Cancel a job: at once if it waits; if it runs, as soon as its worker notices."""
        with self._database.transaction() as run:
            found = run("UPDATE jobs SET stop = 1 WHERE id = ? RETURNING *", (id,))
            if not found:
                return None
            if found[0]["state"] == "waiting":
                record_end(run, id, "cancelled", {})
            return job_from_row(run("SELECT * FROM jobs WHERE id = ?", (id,))[0])

    def get(self, id: str) -> QueuedJob | None:  # noqa: A002 - the field's name
        """Return the current state of a job; None if there is no such job."""
        with self._database.reading() as run:
            rows = run("SELECT * FROM jobs WHERE id = ?", (id,))
        return job_from_row(rows[0]) if rows else None

    def jobs(
        self,
        *states: JobState,
        queue: str | None = None,
        owner: str | None = None,
        before: float | None = None,
        lane: Lane | None = None,
    ) -> list[QueuedJob]:
        """Jobs in the order of their submission.

        Args:
            states: States of the jobs; any state if none is given.
            queue: Kind of work; any kind if None.
            owner: Owner of the jobs; any owner if None.
            before: Time in Unix seconds before which the jobs were last changed; any time if None.
            lane: Lane of the jobs; any lane if None.
        """
        named = {f"state{number}": state for number, state in enumerate(states or STATES)}
        condition, values = ("1", {}) if lane is None else lane.condition()
        with self._database.reading() as run:
            rows = run(
                f"SELECT * FROM jobs WHERE state IN ({', '.join(f':{name}' for name in named)}) "
                "AND queue = COALESCE(:queue, queue) AND owner = COALESCE(:owner, owner) "
                f"AND changed < COALESCE(:before, changed + 1) AND {condition} ORDER BY number",
                {**named, **values, "queue": queue, "owner": owner, "before": before},
            )
        return [job_from_row(row) for row in rows]

    def count(self, queue: str) -> dict[JobState, int]:
        """Number of jobs of a kind in each state."""
        with self._database.reading() as run:
            rows = run("SELECT state, COUNT(*) AS n FROM jobs WHERE queue = ? GROUP BY state", (queue,))
        found: dict[JobState, int] = {row["state"]: row["n"] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def count_ahead(self, job: QueuedJob) -> int:
        """Number of waiting jobs of the same kind that precede a job."""
        with self._database.reading() as run:
            rows = run(
                "SELECT COUNT(*) AS n FROM jobs AS other JOIN jobs AS this ON this.id = ? "
                "WHERE other.state = 'waiting' AND other.queue = this.queue "
                "AND (other.attempts, other.number) < (this.attempts, this.number)",
                (job.id,),
            )
        return int(rows[0]["n"])

    def delete(self, id: str) -> bool:  # noqa: A002 - the field's name
        """Delete a job that has ended; return False if there is none."""
        with self._database.transaction() as run:
            return bool(
                run("DELETE FROM jobs WHERE id = ? AND state IN ('done', 'failed', 'cancelled') RETURNING 1", (id,))
            )
