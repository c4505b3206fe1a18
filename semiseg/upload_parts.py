"""A scan's files as parts of an upload: as they are, or packed into one zip.

Their names may tell who the patient is, so the server gets numbers instead.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from semiseg.errors import InputError
from semiseg.volumes.read_options import Paths

_OPEN_FILES = 100  # more are sent as one zip: a process may hold about a thousand files open


def multipart_files(name: str, paths: Paths, stack: contextlib.ExitStack) -> list[tuple[str, tuple[str, IO[bytes]]]]:
    """Open files as parts of a form.

    Args:
        name: name of the form's field.
        paths: files or folders of one scan; a folder, many files, or a header with its data files become one zip.
        stack: context that closes the files.

    Raises:
        InputError: a file is missing, or there is none.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    missing = [path for path in given if not path.exists()]
    if missing or not given:
        raise InputError(f"There is no file or folder {missing[0]}." if missing else "There is no file to segment.")
    detached = len(given) == 1 and bool(_parts_of_header(given[0]))
    if len(given) > _OPEN_FILES or detached or any(path.is_dir() for path in given):
        archive = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack is the context
        _zip_into(archive, given)
        streams: list[IO[bytes]] = [archive]
    else:
        streams = [stack.enter_context(path.open("rb")) for path in given]
    return [(name, (f"{number:05d}", stream)) for number, stream in enumerate(streams, start=1)]


def _zip_into(stream: IO[bytes], given: Sequence[Path]) -> None:
    """Pack files and the files in folders, stored without compression, under numbers.

    A header that has its voxels in other files takes these along, under the names by which it finds them.
    """
    files: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files += [p for p in inside if not p.name.startswith(".")]
    if not files:
        raise InputError(f"The folder {given[0]} holds no files.")
    members: dict[Path, str] = {}
    for number, file in enumerate(files, start=1):
        for name, part in _parts_of_header(file).items():
            members.setdefault(part.resolve(), f"{number:05d}/{PurePosixPath(name)}")
    for number, file in enumerate(files, start=1):
        members.setdefault(file.resolve(), f"{number:05d}")
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for file, name in members.items():
            # The year that zip begins with: a file older than that could not be packed otherwise.
            info = zipfile.ZipInfo(name)
            with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(2**20):
                    target.write(chunk)
    stream.seek(0)


def _parts_of_header(path: Path) -> Mapping[str, Path]:
    """The files of a scan whose header has its voxels in other files, by names under which it finds them."""
    if path.suffix.lower() not in (".hdr", ".mhd", ".nhdr") and not path.name.lower().endswith(".hdr.gz"):
        return {}
    try:
        from semiseg.volumes.formats.registry import scan_parts
    except ImportError:  # the gateway has a client, and sends DICOM
        return {}
    return scan_parts(path)
