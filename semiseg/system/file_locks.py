"""A folder that belongs to one process at a time, until that process ends.

The lock is the system's own on the file ``lock`` in the folder (``flock`` on Linux and macOS, a locked byte range on
Windows), so it ends with the process however that ends, and it is the one that semiseg has always taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from semiseg.errors import InputError

LOCK = "lock"


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Be the only process that works in ``folder``; the system lets go of it however the process ends.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    # Not through a link, and nothing is cut off: the folder may lie where others write too. The file stays when the
    # lock is released, as another process may be waiting for it.
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
