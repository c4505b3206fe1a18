"""Files and folders that appear under their name complete or not at all, and that last through a power cut.

A rename within one volume is all or nothing on every file system that semiseg runs on, and it lasts once the folder
above has been synced. On macOS an ordinary fsync ends in the disk's own cache, so the disk is asked to write that, too.
Windows differs in three respects: a folder cannot be opened and therefore not be synced (NTFS
writes its own log of renames); a file that another program holds open (a virus scanner, a search index) cannot be
replaced for a moment; and permissions are inherited from the folder.
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

# Windows: access denied, sharing violation, lock violation. Elsewhere an error has no such number.
_HELD_BY_OTHERS = (5, 32, 33)
_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between attempts
# Where a file system has no hard links, or the file has too many.
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file beside ``path`` and rename it to ``path`` when the block ends without an error.

    The bytes are on the disk (fsync) before the name is, so that neither a reader nor a power cut meets half a file.
    The file gets the permissions of an ordinary new one, or, with ``private``, only its owner may read it (mode 600)
    from the first byte on. The folder must exist.
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
    with contextlib.suppress(OSError):  # not every file system syncs a folder; the rename itself has happened by now
        sync(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Give ``path`` new content: a reader sees the old or the new one, and after a power cut one of them is there."""
    with atomic_file(path) as stream:
        stream.write(content)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; a file ``target`` is replaced, and so is an empty folder by a folder.

    On Windows the attempt is repeated for three seconds while another program holds one of them open.
    """
    if not _opens_folders() and source.is_dir() and target.is_dir():
        target.rmdir()  # Windows replaces no folder; one that is not empty is refused here as there
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
    """Rename a folder that lies on the same volume, once its files are on the disk."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    rename(folder, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Write a file, or the list of a folder's files where the system lets a folder be opened, to the disk."""
    if path.is_dir() and not _opens_folders():
        return
    # Windows syncs a file only through a handle that may write.
    descriptor = os.open(path, os.O_RDONLY if _opens_folders() else os.O_RDWR)
    try:
        full_fsync(descriptor)
    finally:
        os.close(descriptor)


def full_fsync(descriptor: int) -> None:
    """Return when what was written to an open file is on the disk."""
    os.fsync(descriptor)
    try:
        import fcntl
    except ImportError:
        return
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:  # macOS; not every file system has it
        with contextlib.suppress(OSError):
            getattr(fcntl, "fcntl")(descriptor, full)  # noqa: B009 - Windows' descriptions of the library lack it


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name on the same volume; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the volume of ``folder``."""
    return shutil.disk_usage(folder).free


def _opens_folders() -> bool:
    return hasattr(os, "O_DIRECTORY")


def _ordinary_mode(folder: Path) -> int:
    """The permissions of a new file in ``folder``."""
    # Linux tells the mask without changing it (changing it, even for a moment, would be seen by other threads).
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return 0o666 & ~int(line.split()[1], 8)
    probe = folder / f".{secrets.token_hex(8)}.part"
    with probe.open("xb"):  # which refuses a file that is there already
        mode = probe.stat().st_mode & 0o666
    probe.unlink()
    return mode
