"""A job of the queue: its states, its fields, and the schema of the table of jobs."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, get_args

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
STATES: tuple[JobState, ...] = get_args(JobState)
ENDED_STATES: tuple[JobState, ...] = ("done", "failed", "cancelled")
LeaseState = Literal["held", "stop", "lost"]
SCHEMA_VERSION = 2

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
# Statements that migrate a file to the next version. A change of the schema, or of payloads that an earlier version
# would misread, needs a new step, and a database file of the release before it in tests/releases.
# 2: forms of jobs have `output_format`, and payloads of the gateway lack fields that have their default.
MIGRATIONS: dict[int, str] = {1: ""}


@dataclass(frozen=True)
class QueuedJob:
    """A row of the queue at the time of reading.

    Attributes:
        id: Identifier of 128 random bits in hexadecimal, which cannot be guessed.
        queue: Kind of work.
        key: Text that is the same for two requests for the same work; None for a job that is always new.
        owner: Name of the client that submitted it; "" if the server has no keys.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        payload: Data that the work needs, as JSON.
        created, changed: Times of its submission and of its last change, in Unix seconds.
        attempts: Number of times that it was started.
        lease: Token of the worker that works on it; None if no worker does.
        stop: True if it was asked to stop.
        progress: Progress reported by the last heartbeat.
        result: Result of the work, or the error message if it failed.
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
        """True if the state will not change any more."""
        return self.state in ENDED_STATES


def job_from_row(row: sqlite3.Row) -> QueuedJob:
    """Convert a row of the table to a job."""
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
