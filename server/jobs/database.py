"""One SQLite file that keeps what it has acknowledged: write-ahead log, synced at every commit."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError
from semiseg.system.durable_files import atomic_file

BUSY_TIMEOUT = 30.0  # seconds that one process waits for another's write
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE")
Execute = Callable[..., list[sqlite3.Row]]


class QueueError(SemisegError):
    """The job database cannot be written: the disk is full or not ours to write."""


class QueueDiskFullError(QueueError):
    """The job database cannot be written because its disk is full."""


class Database:
    """The connection to a file; to be used from any thread, and from several processes."""

    def __init__(self, file: Path, schema: str, version: int, migrations: Mapping[int, str]) -> None:
        """Open the file, or make it with the statements of ``schema``; an earlier version is brought to this one.

        Before that a copy is made beside it, ``NAME.versionN``, for whoever has to go back.

        Args:
            file: The file.
            schema: Statements that make it anew.
            version: Version of the schema, from 1.
            migrations: Statements that make the next version of each earlier one that can still be opened.

        Raises:
            InputError: the file is no database, or one of a version from which no migrations lead to this one.
            QueueError: it cannot be opened or written.
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
            raise InputError(f"{file} is no job database ({error}); move it away or name another folder.") from None

    def _prepare(self, file: Path, schema: str, version: int, migrations: Mapping[int, str]) -> None:
        run = self._run
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut too
        run("PRAGMA fullfsync = ON")  # on macOS, where a sync ends in the disk's cache; nothing elsewhere
        with self.transaction():
            found = run("PRAGMA user_version")[0][0]
            if found == 0 and not run("SELECT 1 FROM sqlite_master"):
                self._change(schema, version)
            elif found > version:
                raise InputError(
                    f"The job database {file} is of version {found}, and this semiseg knows versions to {version}: a "
                    "newer semiseg wrote it. Install that one again, or put back the copy from before the upgrade."
                )
            elif found < version:
                if not all(one in migrations for one in range(found, version)):
                    raise InputError(
                        f"The job database {file} is of version {found}, which this semiseg cannot bring to {version}; "
                        "end its jobs with the semiseg that wrote it, or name another folder."
                    )
                self.copy_to(file.with_name(f"{file.name}.version{found}"))
                for one in range(found, version):
                    self._change(migrations[one], one + 1)

    def _change(self, statements: str, version: int) -> None:
        for statement in statements.split(";"):
            self._run(statement)
        self._run(f"PRAGMA user_version = {version}")

    def copy_to(self, file: Path) -> None:
        """Write all of it, as it is at this moment, into a file of the owner's alone.

        Raises:
            QueueError: it cannot be read, or the copy not be written.
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
            QueueError: the file cannot be read.
        """
        with self._lock, _database_errors():
            yield self._run

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Execute]:
        """All of it or nothing, and nobody else in between; on the disk at the end of the block.

        Raises:
            QueueError: the file cannot be written.
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
