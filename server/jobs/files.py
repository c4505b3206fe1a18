"""Folders that are whole or not there, and belong to one process.

A rename within one volume is all or nothing, and it lasts through a power cut once the folder above has been synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from semiseg.errors import InputError

LOCK = "lock"


def move_durably(folder: Path, target: Path) -> None:
    """Rename a folder that lies on the same volume, once its files are on the disk."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    folder.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file, or the list of a folder's files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder, or nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Delete what lies in a folder."""
    for path in folder.iterdir():
        remove(path)


def free_bytes(folder: Path) -> int:
    """How much the volume of ``folder`` still takes from such as us."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only process that works in ``folder``; the system lets go of it however the process ends.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not through a link, and nothing is cut off: the folder may lie where others write too.
        stream = os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb+")
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written ({error.strerror}).") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process works in the folder {folder}; name another one, or stop it.") from None
        yield
