"""A job database of an earlier version is brought to this one, step by step, and a copy of it is kept."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from semiseg.errors import InputError
from server.jobs.database import Database, QueueError

FIRST = "CREATE TABLE things (name TEXT); INSERT INTO things VALUES ('old')"
STEPS = {
    1: "ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 0; UPDATE things SET size = 3",
    2: "CREATE INDEX by_size ON things (size)",
}
THIRD = "CREATE TABLE things (name TEXT, size INTEGER NOT NULL DEFAULT 0); CREATE INDEX by_size ON things (size)"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Database(tmp_path / "db", FIRST, 1, {}).close()
    return tmp_path / "db"


def rows(file: Path, version: int, steps: Mapping[int, str] = STEPS) -> list[tuple[object, ...]]:
    database = Database(file, THIRD, version, steps)
    with database.reading() as run:
        found = [tuple(row) for row in run("SELECT * FROM things")]
        assert run("PRAGMA user_version")[0][0] == version
    database.close()
    return found


def test_steps_are_taken_in_order_and_the_file_from_before_is_kept(file: Path) -> None:
    """DEP-06."""
    assert rows(file, 3) == [("old", 3)]
    copy = file.with_name("db.version1")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert rows(copy, 1, {}) == [("old",)]
    assert rows(file, 3) == [("old", 3)]  # once more: nothing to do


def test_step_that_fails_changes_nothing(file: Path) -> None:
    with pytest.raises(QueueError, match="no such table"):
        Database(file, THIRD, 3, STEPS | {2: "UPDATE missing SET size = 4"})
    assert rows(file, 1, {}) == [("old",)]


def test_version_from_which_no_steps_lead_here_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match="version 1, which this semiseg cannot migrate to 3"):
        Database(file, THIRD, 3, {2: STEPS[2]})
    assert rows(file, 1, {}) == [("old",)]
    assert rows(file, 3) == [("old", 3)]
    with pytest.raises(InputError, match="version 3, but this semiseg reads versions up to 1"):
        Database(file, FIRST, 1, {})


def test_copy_that_cannot_be_written_leaves_the_file_as_it_was(file: Path) -> None:
    file.with_name("db.version1").mkdir()
    with pytest.raises(QueueError, match="copy"):
        Database(file, THIRD, 3, STEPS)
    assert rows(file, 1, {}) == [("old",)]
