"""The one folder that a server writes into while it runs; what a killed one left is deleted by the next."""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.file_locks import LOCK, held
from semiseg.system.file_owners import is_ours

PREFIX = "semiseg-serve-"
YOUNG = 60.0  # seconds in which a folder may be without its lock, because its server is just making it


@contextlib.contextmanager
def scratch_in(parent: Path | None) -> Iterator[Path]:
    """A folder of this process below ``parent`` (the system's temporary folder), deleted at the end.

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
        with held(folder):
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
            if not stat.S_ISDIR(found.st_mode) or not is_ours(found):
                continue
            if not (other / LOCK).exists() and time.time() - found.st_mtime < YOUNG:
                continue
            with held(other):
                shutil.rmtree(other, ignore_errors=True)
            shutil.rmtree(other, ignore_errors=True)  # Windows keeps a file that is locked, and its folder
