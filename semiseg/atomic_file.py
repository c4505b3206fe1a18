"""A file that appears under its name complete or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file beside ``path`` and rename it to ``path`` when the block ends without an error.

    The bytes are on the disk (fsync) before the name is, so that neither a reader nor a power cut meets half a file.
    The file gets the permissions of an ordinary new one, or, ``private``, is its owner's alone (mode 600) from the
    first byte on. The folder must exist.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".part")  # mode 600
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Give ``path`` new content: a reader sees the old or the new one, and after a power cut one of them is there."""
    with atomic_file(path) as stream:
        stream.write(content)


def _umask() -> int:
    # Linux tells without changing it (changing it, even for a moment, would be seen by other threads).
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _sync_folder(folder: Path) -> None:
    # Not every file system lets a folder be opened or synced; the rename itself has happened by now.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
