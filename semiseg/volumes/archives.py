"""Unpacks uploaded zip archives, whose contents are not trusted.

Member names never become paths: members are written as numbered files. Sizes are counted during unpacking; the sizes
that the archive declares are not relied upon.
"""

from __future__ import annotations

import errno
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from semiseg.errors import VolumeError

_CHUNK = 2**20
_RATIO_FROM = 2**24  # blank slices compress a thousandfold, so the ratio is applied only above 16 MiB
_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True)
class UnpackLimits:
    """Limits on the content of an archive.

    Attributes:
        members: Maximum number of files.
        total_bytes: Maximum unpacked size of all files together, in bytes.
        ratio: Maximum unpacked size divided by the size of the archive.
    """

    members: int = 20_000
    total_bytes: int = 4 * 2**30
    ratio: float = 200.0


def is_zip(path: Path) -> bool:
    """Return True if the file starts like a zip archive and is not DICOM, whose first 128 bytes are arbitrary."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[:4] in (b"PK\x03\x04", b"PK\x05\x06") and start[128:132] != b"DICM"


def unpack_zip(path: Path, into: Path, limits: UnpackLimits) -> list[Path]:
    """Unpack a zip's files into the existing folder ``into`` as 00001, 00002, ... in the archive's order.

    Raises:
        VolumeError: See :func:`unpack_zip_with_names`.
    """
    return list(unpack_zip_with_names(path, into, limits))


def archive_finder(image: Path, names: Mapping[Path, str]) -> Callable[[str], Path | None]:
    """Make a function that finds the data files of the header ``image`` by their names in the archive.

    Args:
        image: One of the files that :func:`unpack_zip_with_names` wrote.
        names: Result of that function: the files with their names in the archive.
    """
    by_name = {PurePosixPath(name.replace("\\", "/")): path for path, name in names.items()}
    ignoring_case = {str(name).lower(): path for name, path in by_name.items()}
    folder = PurePosixPath(names[image].replace("\\", "/")).parent
    return lambda name: by_name.get(folder / name) or ignoring_case.get(str(folder / name).lower())


def unpack_zip_with_names(path: Path, into: Path, limits: UnpackLimits) -> dict[Path, str]:
    """Unpack a zip's files into the existing folder ``into`` as 00001, 00002, ... in the archive's order.

    Returns:
        The files, each with its name in the archive. A header finds its data files by these names; they never become
        paths.

    Raises:
        VolumeError: The file is not a zip, is damaged, exceeds the limits, or has members that are encrypted, links,
            special files or archives themselves. Files written before the error are removed.
    """
    written: dict[Path, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = _accepted(path, archive, limits)
            allowed = _allowed_bytes(path, limits)
            for number, member in enumerate(members, start=1):
                target = into / f"{number:05d}"
                written[target] = member.filename
                allowed -= _extract(path, archive, member, target, allowed, limits)
    except VolumeError:
        _remove(written)
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        _remove(written)
        raise VolumeError(f"{path}: the zip archive is damaged or of an unknown format ({error}).") from error
    except OSError as error:
        _remove(written)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the disk is full, which is not an error of the archive
        raise VolumeError(f"{path}: the zip archive cannot be unpacked ({error.strerror or error}).") from error
    return written


def _accepted(path: Path, archive: zipfile.ZipFile, limits: UnpackLimits) -> list[zipfile.ZipInfo]:
    """Return the archive's files; refuse everything that its directory alone shows to be unacceptable."""
    # Not is_dir(): before Python 3.11.4 it fails on a damaged directory in which a name is empty.
    members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    if not members:
        raise VolumeError(f"{path}: the zip archive is empty.")
    if len(members) > limits.members:
        raise VolumeError(f"{path}: the zip archive holds {len(members)} files; the limit is {limits.members}.")
    for number, member in enumerate(members, start=1):
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise VolumeError(f"{path}: member {number} of the zip archive is a symbolic link, which is refused.")
        if kind not in (0, stat.S_IFREG):
            raise VolumeError(f"{path}: member {number} of the zip archive is a special file, which is refused.")
        if member.flag_bits & 0x1:
            raise VolumeError(f"{path}: the zip archive is encrypted; send it without a password.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise VolumeError(f"{path}: the zip archive uses a compression other than deflate; pack it again.")
    declared = sum(member.file_size for member in members)
    allowed = _allowed_bytes(path, limits)
    if declared > allowed:
        raise VolumeError(f"{path}: the zip archive declares {declared} unpacked bytes; {allowed} are allowed.")
    return members


def _allowed_bytes(path: Path, limits: UnpackLimits) -> int:
    return min(limits.total_bytes, max(_RATIO_FROM, int(path.stat().st_size * limits.ratio)))


def _extract(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, allowed: int, limits: UnpackLimits
) -> int:
    """Write one member and return its size; fail as soon as it grows beyond ``allowed`` bytes."""
    size = 0
    with archive.open(member) as source, target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            if size == 0:
                _refuse_archive(path, chunk)
            size += len(chunk)
            if size > allowed:
                most = _allowed_bytes(path, limits)
                raise VolumeError(f"{path}: the zip archive unpacks to more than the {most} bytes that are allowed.")
            out.write(chunk)
    return size


def archive_type(start: bytes) -> str | None:
    """Return the archive format, such as "7z", of a file with these first bytes; None if it is not an archive."""
    kind = next((name for magic, name in _ARCHIVES.items() if start.startswith(magic)), None)
    return "tar" if kind is None and start[257:262] == b"ustar" else kind


def _refuse_archive(path: Path, start: bytes) -> None:
    if start[128:132] == b"DICM":
        return
    kind = archive_type(start)
    if kind is not None:
        raise VolumeError(f"{path}: the zip archive holds another archive ({kind}); send the files themselves.")


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
