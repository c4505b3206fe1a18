"""Atomic and durable writes: files and folders appear complete or not at all, and survive a power failure.

A rename within one volume is atomic on every file system that semiseg supports, and it is durable once the parent
folder has been synced. On macOS an ordinary fsync ends in the disk's own cache, so the disk is told to write that cache
as well. Windows differs in three respects: a folder cannot be opened and therefore cannot be synced (NTFS keeps its own
log of renames); a file that another program has open (a virus scanner, a search index) cannot be replaced for a moment;
and permissions are inherited from the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Windows error codes: access denied, sharing violation, lock violation. Errors of other systems have no such code.
_HELD_BY_OTHERS = (5, 32, 33)
_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between attempts
# Errors of file systems without hard links, and of files that have too many.
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file beside ``path`` and rename it to ``path`` when the block ends without an error.

    The content is on the disk (fsync) before the file is renamed, so that neither a reader nor a power failure leaves a
    partial file. The file gets the permissions of an ordinary new file; with ``private`` only its owner may read it
    (mode 600), from the first byte on. The folder must exist.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".part")  # mode 600
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            full_fsync(file.fileno())
        if not private:
            part.chmod(_ordinary_mode(path.parent))
        rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the rename is already done
        sync(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically: readers, and a power failure, leave the old or the new content."""
    with atomic_file(path) as stream:
        stream.write(content)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; an existing file ``target`` is replaced, and an empty folder is replaced by a folder.

    On Windows the attempt is repeated for three seconds while another program has one of them open.
    """
    if not _opens_folders() and source.is_dir() and target.is_dir():
        target.rmdir()  # Windows cannot replace a folder; rmdir fails if the folder is not empty, as rename does
    for pause in _PAUSES:
        try:
            source.replace(target)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _HELD_BY_OTHERS:
                raise
        else:
            return
        time.sleep(pause)
    source.replace(target)


def move_durably(folder: Path, target: Path) -> None:
    """Rename a folder within one volume after its files have been synced to the disk."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    rename(folder, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Sync a file to the disk, or a folder (its list of files) if the system can open folders."""
    if path.is_dir() and not _opens_folders():
        return
    # Windows syncs a file only through a handle with write access.
    descriptor = os.open(path, os.O_RDONLY if _opens_folders() else os.O_RDWR)
    try:
        full_fsync(descriptor)
    finally:
        os.close(descriptor)


def full_fsync(descriptor: int) -> None:
    """Sync an open file to the disk, including the disk's own cache where the system supports that."""
    os.fsync(descriptor)
    try:
        import fcntl
    except ImportError:
        return
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:  # macOS; not every file system has it
        with contextlib.suppress(OSError):
            getattr(fcntl, "fcntl")(descriptor, full)  # noqa: B009 - Windows' type stubs lack it


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link on the same volume, or a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def free_bytes(folder: Path) -> int:
    """Return the number of bytes that this user can still write to the volume of ``folder``."""
    return shutil.disk_usage(folder).free


def _opens_folders() -> bool:
    return hasattr(os, "O_DIRECTORY")


def _ordinary_mode(folder: Path) -> int:
    """Return the permissions of an ordinary new file in ``folder``."""
    # Linux reports the umask without changing it. Changing it, even for a moment, would affect other threads.
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return 0o666 & ~int(line.split()[1], 8)
    probe = folder / f".{secrets.token_hex(8)}.part"
    with probe.open("xb"):  # fails if the file already exists
        mode = probe.stat().st_mode & 0o666
    probe.unlink()
    return mode
