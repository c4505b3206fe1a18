"""Preparation of a scan's files for an upload: as separate parts, or packed into one zip.

File names may identify the patient, so the server receives numbers instead.
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

_OPEN_FILES = 100  # more files are sent as one zip, because a process may have only about a thousand open files


def multipart_files(name: str, paths: Paths, stack: contextlib.ExitStack) -> list[tuple[str, tuple[str, IO[bytes]]]]:
    """Open files as parts of a multipart form.

    Args:
        name: Name of the form field.
        paths: Files or folders of one scan; a folder, many files, or a header with its data files become one zip.
        stack: Context that closes the files.

    Raises:
        InputError: A file does not exist, or the list is empty.
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
    """Write files, and the files in folders, to a zip archive without compression; members are named by numbers.

    The data files of a header are included under the names by which the header refers to them.
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
            # The default date, 1980, because zip cannot store an older one.
            info = zipfile.ZipInfo(name)
            with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(2**20):
                    target.write(chunk)
    stream.seek(0)


def _parts_of_header(path: Path) -> Mapping[str, Path]:
    """Return the data files of a detached header, by the names under which the header refers to them."""
    if path.suffix.lower() not in (".hdr", ".mhd", ".nhdr") and not path.name.lower().endswith(".hdr.gz"):
        return {}
    try:
        from semiseg.volumes.formats.registry import scan_parts
    except ImportError:  # the gateway is installed without the image packages; it sends only DICOM
        return {}
    return scan_parts(path)
