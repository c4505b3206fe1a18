"""The scratch folder of a server process; the next process deletes the folders of killed ones."""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.file_locks import LOCK, exclusive_lock
from semiseg.system.file_owners import is_owned_by_current_user

PREFIX = "semiseg-serve-"
LOCK_GRACE_SECONDS = 60.0  # age in seconds until which a folder without a lock is kept: its server may be starting


@contextlib.contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Create a folder for this process below ``parent`` (default: the system's temporary folder); delete it at the end.

    Raises:
        InputError: ``parent`` cannot be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise InputError(
            f"The folder {parent or tempfile.gettempdir()} cannot be written ({error.strerror})."
        ) from None
    try:
        with exclusive_lock(folder):
            _sweep(folder)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(own: Path) -> None:
    for other in own.parent.glob(f"{PREFIX}*"):
        if other == own:
            continue
        with contextlib.suppress(OSError, InputError):
            found = other.lstat()
            if not stat.S_ISDIR(found.st_mode) or not is_owned_by_current_user(found):
                continue
            if not (other / LOCK).exists() and time.time() - found.st_mtime < LOCK_GRACE_SECONDS:
                continue
            with exclusive_lock(other):
                shutil.rmtree(other, ignore_errors=True)
            shutil.rmtree(other, ignore_errors=True)  # Windows does not delete a locked file and its folder
