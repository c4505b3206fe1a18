"""A job of the queue: its states, its fields, and the table that it is a row of."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, get_args

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
STATES: tuple[JobState, ...] = get_args(JobState)
ENDED_STATES: tuple[JobState, ...] = ("done", "failed", "cancelled")
LeaseState = Literal["held", "stop", "lost"]
SCHEMA_VERSION = 1

SCHEMA = """
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
MIGRATIONS: dict[int, str] = {}


@dataclass(frozen=True)
class QueuedJob:
    """A row of the queue, as it was when it was read.

    Attributes:
        id: 128 random bits in hexadecimal: whoever does not know it cannot guess it.
        queue: Kind of work.
        key: Text that is the same for two requests for the same work; None for a job that is always new.
        owner: Name of whoever put it in, "" for anybody.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        payload: Data that the work needs, as JSON.
        created, changed: Times of its arrival and of its last change, in Unix seconds.
        attempts: Number of times that it was begun.
        lease: Token of the worker that works on it; None where nobody does.
        stop: True once it was asked to stop.
        progress: Progress that the last heartbeat told.
        result: Result of the work, or the sentence of its failure.
    """

    id: str
    queue: str
    key: str | None
    owner: str
    state: JobState
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
        return self.state in ENDED_STATES


def job_from_row(row: sqlite3.Row) -> QueuedJob:
    """The job that a row of the table holds."""
    return QueuedJob(
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
