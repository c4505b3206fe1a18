"""One SQLite file that keeps what it has acknowledged: write-ahead log, synced at every commit."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError

PATIENCE = 30.0  # seconds that one process waits for another's write
Run = Callable[..., list[sqlite3.Row]]


class QueueError(SemisegError):
    """The job database cannot be written: the disk is full or not ours to write."""


class Database:
    """The connection to a file; to be used from any thread, and from several processes."""

    def __init__(self, file: Path, schema: str, version: int) -> None:
        """Open the file, or make it with the statements of ``schema``.

        Raises:
            InputError: the file is no database, or one of another version than ``version``.
            QueueError: it cannot be opened or written.
        """
        self._lock = threading.RLock()
        try:
            self.connection = sqlite3.connect(
                file, timeout=PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            self.connection.row_factory = sqlite3.Row
            self._prepare(file, schema, version)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise QueueError(f"The job database {file} cannot be opened ({error}).") from None
            raise InputError(f"{file} is no job database ({error}); move it away or name another folder.") from None

    def _prepare(self, file: Path, schema: str, version: int) -> None:
        run = self._run
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut too
        with self.transaction():
            found = run("PRAGMA user_version")[0][0]
            if found == 0 and not run("SELECT 1 FROM sqlite_master"):
                for statement in schema.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {version}")
            elif found != version:
                raise InputError(
                    f"The job database {file} is of version {found} and this semiseg reads version {version}; open "
                    "it with the semiseg that wrote it, or name another folder."
                )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Run]:
        """Run statements that change nothing.

        Raises:
            QueueError: the file cannot be read.
        """
        with self._lock, _told():
            yield self._run

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Run]:
        """All of it or nothing, and nobody else in between; on the disk at the end of the block.

        Raises:
            QueueError: the file cannot be written.
        """
        with self._lock, _told():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._run
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    def _run(self, statement: str, values: Any = ()) -> list[sqlite3.Row]:
        return self.connection.execute(statement, values).fetchall()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise QueueError(f"The job database cannot be used ({error}).") from error
