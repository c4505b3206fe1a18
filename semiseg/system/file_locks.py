"""Exclusive use of a folder by one process at a time.

The lock is the operating system's on the file ``lock`` in the folder (``flock`` on Linux and macOS, a locked byte range
on Windows), so it is released when the process ends for any reason. All versions of semiseg use the same lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from semiseg.errors import InputError

LOCK = "lock"


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for this process; the system releases the lock when the process ends for any reason.

    Raises:
        InputError: Another process has locked the folder, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    # The lock does not follow links and does not truncate the file, because other users may write to the parent folder.
    # The file stays when the lock is released, because another process may be waiting for it.
    lock = FileLock(
        folder / LOCK, mode=0o600, blocking=False, thread_local=False, fallback_to_soft=False, preserve_lock_file=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"Another process works in the folder {folder}; name another one, or stop it.") from None
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written ({error.strerror}).") from None
    try:
        yield
    finally:
        lock.release()
