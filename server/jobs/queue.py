"""A durable queue in one SQLite file: a job that was accepted ends exactly once, whatever happens to the process.

Who works on a job holds a lease on it and renews it while the work goes on (a heartbeat). When the lease runs out, or
its holder is known to be gone, the job is free for the next one; only the holder of the present lease can end it, so a
worker that comes back late changes nothing. A job that was begun and not ended `attempts` times is given up: it may be
what kills the process.

Leases and delays are measured on the machine's clock since it was started, which nobody can set; after another start
of the machine all of them are over (:mod:`semiseg.system.boot_clock` says what holds on systems other than Linux). The
time of day is only written down for people and for retention.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from semiseg.errors import SemisegError
from semiseg.system import boot_clock
from server.jobs.database import Database, Run
from server.jobs.lanes import Lane, OwnerShares

State = Literal["waiting", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
Standing = Literal["held", "stop", "lost"]
VERSION = 1

_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    key TEXT,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    payload TEXT NOT NULL,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    boot TEXT NOT NULL DEFAULT '',
    due REAL NOT NULL DEFAULT 0,
    lease TEXT,
    stop INTEGER NOT NULL DEFAULT 0,
    progress TEXT NOT NULL DEFAULT '{}',
    result TEXT NOT NULL DEFAULT '{}',
    UNIQUE (queue, key)
);
CREATE INDEX jobs_by_state ON jobs (queue, state, attempts, number);
CREATE INDEX jobs_by_owner ON jobs (owner, number);
"""
# What makes the next version of a file of an earlier one. Whoever changes the schema adds a step, and keeps a file of
# the release before in tests/releases.
_STEPS: dict[int, str] = {}
# A job that may be taken: nobody's, with its delay over, or one whose lease ran out.
_FREE = "queue = :queue AND state IN ('waiting', 'running') AND (boot <> :boot OR due <= :now)"


class QueueFull(SemisegError):  # noqa: N818 - it passes
    """So many jobs wait already: ``limit`` of one ``owner``, or of everybody's where that is None."""

    def __init__(self, limit: int, owner: str | None) -> None:
        whose = "jobs" if owner is None else "jobs of yours"
        super().__init__(f"There are {limit} {whose} waiting already, as many as may; try again later.")


@dataclass(frozen=True)
class Job:
    """A row of the queue, as it was when it was read.

    Attributes:
        id: 128 random bits in hexadecimal: whoever does not know it cannot guess it.
        queue: which kind of work.
        key: what makes two requests the same one; None for a job that is always new.
        owner: who put it in, "" for anybody.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        payload: what the work needs, as JSON.
        created, changed: Unix seconds.
        attempts: how often it was begun.
        lease: proof of the one who works on it.
        stop: whether it was asked to stop.
        progress: what the last heartbeat told.
        result: what the end told.
    """

    id: str
    queue: str
    key: str | None
    owner: str
    state: State
    payload: dict[str, Any]
    created: float
    changed: float
    attempts: int
    lease: str | None
    stop: bool
    progress: dict[str, Any]
    result: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


class Queue:
    """The jobs of one file; to be used from any thread, and from several processes."""

    def __init__(self, file: Path, *, attempts: int = 10) -> None:
        """Open or make the file.

        Args:
            file: the database; SQLite keeps two more files beside it.
            attempts: how often a job is begun before it is given up.

        Raises:
            InputError: the file is no job database, or one of another version.
            QueueError: it cannot be opened or written.
        """
        self._attempts = attempts
        self._boot = boot_clock.boot()
        self._shares = OwnerShares()
        self._database = Database(file, _SCHEMA, VERSION, _STEPS)

    def copy_to(self, file: Path) -> None:
        """Write all of it, as it is at this moment, into a file.

        Raises:
            QueueError: it cannot be read, or the copy not be written.
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
        most: int | None = None,
        most_of_owner: int | None = None,
    ) -> Job:
        """Accept a job; when this returns, it is on the disk.

        With a ``key`` that the queue already has, the job that has it is the answer and nothing is added. Otherwise at
        most ``most`` jobs may wait, and ``most_of_owner`` of one owner.

        Raises:
            QueueFull: so many wait already.
            QueueError: it could not be written.
        """
        now = time.time()
        row = (id or secrets.token_hex(16), queue, key, owner, "waiting", json.dumps(payload), now, now)
        with self._database.transaction() as run:
            if key is not None and (there := run("SELECT * FROM jobs WHERE queue = ? AND key = ?", (queue, key))):
                return _job(there[0])
            for limit, whose in ((most, None), (most_of_owner, owner)):
                if limit is not None:
                    count = (
                        "SELECT COUNT(*) FROM jobs WHERE queue = ? AND state = 'waiting' AND owner = COALESCE(?, owner)"
                    )
                    if run(count, (queue, whose))[0][0] >= limit:
                        raise QueueFull(limit, whose)
            names = "id, queue, key, owner, state, payload, created, changed"
            return _job(run(f"INSERT INTO jobs ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING *", row)[0])

    def lease(
        self,
        queue: str,
        seconds: float,
        ended: Callable[[Job, State], None] = lambda *_: None,
        *,
        lane: Lane | None = None,
        fair: bool = False,
    ) -> Job | None:
        """Take the next free job for ``seconds``; None when there is none.

        Jobs that were begun less often go first, so that one that kills the process does not keep the others waiting;
        then those that were never given back, and then those whose delay was over first: jobs that fail again and
        again do not keep later ones waiting either.
        Free jobs that are not to be begun again end here, and ``ended`` is told of each.

        Args:
            queue: Kind of work.
            seconds: Length of the lease.
            ended: Called with each job that ended here.
            lane: Only the jobs of this lane; all of the kind when it is None.
            fair: Whether owners take turns; otherwise jobs begin in the order in which they came.
        """
        over: list[tuple[Job, State]] = []
        job = self._lease(queue, seconds, over, lane, fair)
        for one, state in over:
            ended(one, state)
        return job

    def _next(self, run: Run, queue: str, lane: Lane | None, fair: bool) -> list[sqlite3.Row]:
        """The row of the job that is to begin next, in a list; an empty list when there is none."""
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
        return run("SELECT * FROM jobs WHERE number = ?", (self._shares.next_of(queue, firsts),))

    def _lease(
        self, queue: str, seconds: float, over: list[tuple[Job, State]], lane: Lane | None, fair: bool
    ) -> Job | None:
        with self._database.transaction() as run:
            while found := self._next(run, queue, lane, fair):
                job = _job(found[0])
                if job.stop:
                    _end(run, job.id, "cancelled", {})
                    over.append((job, "cancelled"))
                elif job.attempts >= self._attempts:
                    sentence = f"Given up: it was begun {job.attempts} times and the program ended before it each time."
                    _end(run, job.id, "failed", {"error": sentence})
                    over.append((job, "failed"))
                else:
                    if fair:
                        self._shares.had_turn(queue, job.owner, run("SELECT MAX(number) FROM jobs")[0][0])
                    return _job(
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

    def renew(self, job: Job, seconds: float, progress: dict[str, Any]) -> Standing:
        """Hold a lease for ``seconds`` more and tell how far the work is.

        Returns:
            ``held``; ``stop`` when the job is to be stopped; ``lost`` when another has it.
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

    def end(self, job: Job, state: State, result: dict[str, Any]) -> bool:
        """End a job that is held; False when another has it meanwhile, and nothing was changed."""
        with self._database.transaction() as run:
            if not run("SELECT 1 FROM jobs WHERE id = ? AND lease = ?", (job.id, job.lease)):
                return False
            _end(run, job.id, state, result)
            return True

    def give_back(self, job: Job, *, after: float = 0.0, payload: dict[str, Any] | None = None) -> State | None:
        """Let another try take a job that is held, ``after`` seconds from now, unless it was to be stopped.

        That it was begun does not count as an attempt: whoever gives it back is alive. With ``payload`` the next try
        gets that one.

        Returns:
            The state that it has now: ``waiting`` or ``cancelled``; None when another has it meanwhile.
        """
        with self._database.transaction() as run:
            rows = run(
                # One that is given back without a delay, as when its server stops, keeps its place.
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
                _end(run, job.id, "cancelled", {})
                return "cancelled"
            return "waiting"

    def retry(
        self,
        id: str,  # noqa: A002 - the field's name
        payload: dict[str, Any] | None = None,
        *,
        states: Sequence[State] = ("failed", "cancelled"),
    ) -> bool:
        """Let a job be done once more that has ended in one of ``states``, with ``payload`` if one is given."""
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
        change: Callable[[Job], dict[str, Any] | None],
        *,
        lane: Lane | None = None,
        at_once: bool = False,
    ) -> int:
        """Give jobs that wait another payload: what happened to one job concerns all of its lane.

        Args:
            queue: Kind of work.
            change: Returns the new payload of a job, or None for a job that stays as it is.
            lane: Only the jobs of this lane; all of the kind when it is None.
            at_once: Whether the changed jobs may begin now, whatever delay they had.

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
                payload = change(_job(row))
                if payload is not None:
                    due = 0.0 if at_once else row["due"]
                    run("UPDATE jobs SET payload = ?, due = ? WHERE id = ?", (json.dumps(payload), due, row["id"]))
                    changed += 1
        return changed

    def fail_waiting(self, id: str, result: dict[str, Any]) -> bool:  # noqa: A002 - the field's name
        """End a job as failed that nobody works on; False when somebody does, or it has ended."""
        with self._database.transaction() as run:
            if not run("SELECT 1 FROM jobs WHERE id = ? AND state = 'waiting'", (id,)):
                return False
            _end(run, id, "failed", result)
            return True

    def free_all(self) -> None:
        """Take back every lease; only for one who knows that nobody else works on this file."""
        with self._database.transaction() as run:
            run("UPDATE jobs SET state = 'waiting', lease = NULL, due = 0 WHERE state = 'running'")

    def stop(self, id: str) -> Job | None:  # noqa: A002 - the field's name
        """Cancel a job: at once when it waits, and when it runs, as soon as its worker hears of it."""
        with self._database.transaction() as run:
            found = run("UPDATE jobs SET stop = 1 WHERE id = ? RETURNING *", (id,))
            if not found:
                return None
            if found[0]["state"] == "waiting":
                _end(run, id, "cancelled", {})
            return _job(run("SELECT * FROM jobs WHERE id = ?", (id,))[0])

    def get(self, id: str) -> Job | None:  # noqa: A002 - the field's name
        """The job as it is now."""
        with self._database.reading() as run:
            rows = run("SELECT * FROM jobs WHERE id = ?", (id,))
        return _job(rows[0]) if rows else None

    def jobs(
        self,
        *states: State,
        queue: str | None = None,
        owner: str | None = None,
        before: float | None = None,
        lane: Lane | None = None,
    ) -> list[Job]:
        """Jobs in the order in which they came.

        Args:
            states: only those in one of these; all of them when none is given.
            queue: only this kind of work.
            owner: only what one put in.
            before: only those that last changed before this moment, in Unix seconds.
            lane: only those of this lane.
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
        return [_job(row) for row in rows]

    def count(self, queue: str) -> dict[State, int]:
        """How many jobs of a kind there are in each state."""
        with self._database.reading() as run:
            rows = run("SELECT state, COUNT(*) AS n FROM jobs WHERE queue = ? GROUP BY state", (queue,))
        found: dict[State, int] = {row["state"]: row["n"] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def ahead_of(self, job: Job) -> int:
        """How many waiting jobs of its kind are to be begun before it."""
        with self._database.reading() as run:
            rows = run(
                "SELECT COUNT(*) AS n FROM jobs AS other JOIN jobs AS this ON this.id = ? "
                "WHERE other.state = 'waiting' AND other.queue = this.queue "
                "AND (other.attempts, other.number) < (this.attempts, this.number)",
                (job.id,),
            )
        return int(rows[0]["n"])

    def forget(self, id: str) -> bool:  # noqa: A002 - the field's name
        """Delete a job that has ended."""
        with self._database.transaction() as run:
            return bool(
                run("DELETE FROM jobs WHERE id = ? AND state IN ('done', 'failed', 'cancelled') RETURNING 1", (id,))
            )

    def _now(self) -> dict[str, Any]:
        return {"now": boot_clock.seconds(), "boot": self._boot}


def _end(run: Run, id: str, state: State, result: dict[str, Any]) -> None:  # noqa: A002 - the field's name
    run(
        "UPDATE jobs SET state = ?, lease = NULL, result = ?, changed = ? WHERE id = ?",
        (state, json.dumps(result), time.time(), id),
    )


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        queue=row["queue"],
        key=row["key"],
        owner=row["owner"],
        state=row["state"],
        payload=json.loads(row["payload"]),
        created=row["created"],
        changed=row["changed"],
        attempts=row["attempts"],
        lease=row["lease"],
        stop=bool(row["stop"]),
        progress=json.loads(row["progress"]),
        result=json.loads(row["result"]),
    )
