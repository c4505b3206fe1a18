"""An SQLite file for durable data: it uses a write-ahead log that is synced at every commit."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError
from semiseg.system.durable_files import atomic_file

BUSY_TIMEOUT = 30.0  # seconds that one process waits for the write of another
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE")
Execute = Callable[..., list[sqlite3.Row]]


class QueueError(SemisegError):
    """The job database cannot be read or written, for example for lack of permission."""


class QueueDiskFullError(QueueError):
    """The job database cannot be written because its disk is full."""


class Database:
    """Connection to a database file; it may be used from any thread, and the file from several processes."""

    def __init__(self, file: Path, schema: str, version: int, migrations: Mapping[int, str]) -> None:
        """Open the file, or create it with the statements of ``schema``; a file of an earlier version is migrated.

        Before a migration the file is copied to ``NAME.versionN`` beside it, so that the upgrade can be undone.

        Args:
            file: Path of the database file.
            schema: Statements that create the database.
            version: Version of the schema, from 1.
            migrations: Statements that migrate to the next version, by the version from which they start.

        Raises:
            InputError: The file is not a database, or its version cannot be migrated to this one.
            QueueError: The file cannot be opened or written.
        """
        self._lock = threading.RLock()
        try:
            self.connection = sqlite3.connect(
                file, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            self.connection.row_factory = sqlite3.Row
            self._prepare(file, schema, version, migrations)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise QueueError(f"The job database {file} cannot be opened ({error}).") from None
            raise InputError(f"{file} is not a job database ({error}); move it away or name another folder.") from None

    def _prepare(self, file: Path, schema: str, version: int, migrations: Mapping[int, str]) -> None:
        run = self._run
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # acknowledged data survives a power cut too
        run("PRAGMA fullfsync = ON")  # macOS: a plain sync ends in the disk's cache; no effect elsewhere
        with self.transaction():
            found = run("PRAGMA user_version")[0][0]
            if found == 0 and not run("SELECT 1 FROM sqlite_master"):
                self._change(schema, version)
            elif found > version:
                raise InputError(
                    f"The job database {file} has version {found}, but this semiseg reads versions up to {version}: a "
                    "newer semiseg wrote it. Install that one again, or restore the copy from before the upgrade."
                )
            elif found < version:
                if not all(one in migrations for one in range(found, version)):
                    raise InputError(
                        f"The job database {file} has version {found}, which this semiseg cannot migrate to {version}; "
                        "finish its jobs with the semiseg that wrote it, or name another folder."
                    )
                self.copy_to(file.with_name(f"{file.name}.version{found}"))
                for one in range(found, version):
                    self._change(migrations[one], one + 1)

    def _change(self, statements: str, version: int) -> None:
        for statement in statements.split(";"):
            self._run(statement)
        self._run(f"PRAGMA user_version = {version}")

    def copy_to(self, file: Path) -> None:
        """Write a copy of the current state into a file that only its owner can read.

        Raises:
            QueueError: The database cannot be read, or the copy cannot be written.
        """
        with self._lock, _database_errors():
            content = self.connection.serialize()
        try:
            with atomic_file(file, private=True) as stream:
                stream.write(content)
        except OSError as error:
            raise QueueError(f"The copy {file} of the job database cannot be written ({error.strerror}).") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Execute]:
        """Run statements that change nothing.

        Raises:
            QueueError: The file cannot be read.
        """
        with self._lock, _database_errors():
            yield self._run

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Execute]:
        """Run statements in one exclusive transaction, which is committed to the disk at the end of the block.

        Raises:
            QueueError: The file cannot be written.
        """
        with self._lock, _database_errors():
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
def _database_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorname", "") in _FULL
        raise (QueueDiskFullError if full else QueueError)(f"The job database cannot be used ({error}).") from error
