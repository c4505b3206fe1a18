"""Registry of the supported formats: every module beside this one that has a ``READER``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from semiseg.errors import VolumeError
from semiseg.volumes import formats
from semiseg.volumes.formats.reader import ImageFile, Reader
from semiseg.volumes.formats.stream import is_gzip, read_start


@cache
def readers() -> tuple[Reader, ...]:
    """Return all readers, NIfTI's first."""
    modules = [
        importlib.import_module(f"{formats.__name__}.{one.name}") for one in pkgutil.iter_modules(formats.__path__)
    ]
    found = [reader for module in modules if isinstance(reader := getattr(module, "READER", None), Reader)]
    return tuple(sorted(found, key=lambda reader: (not reader.name.startswith("NIfTI"), reader.name)))


def reader_for_file(path: Path) -> Reader | None:
    """Return the reader for a file's content, whatever its name; None if no format is recognised. Never raises."""
    reader = reader_for_bytes(read_start(path))
    return None if reader is not None and not reader.may_be_gzipped and is_gzip(path) else reader


def reader_for_bytes(start: bytes) -> Reader | None:
    """Return the reader of a file with these first (unpacked) bytes; None if no format is recognised."""
    return next((reader for reader in readers() if reader.recognises(start)), None)


def scan_parts(path: Path) -> Mapping[str, Path]:
    """Return the header ``path`` and its data files by the names under which it finds them in one archive.

    Returns:
        The files, the header first; none if the scan is in one file, or its header cannot be read.
    """
    reader = reader_for_file(path)
    try:
        return {} if reader is None or reader.parts is None else reader.parts(ImageFile(path))
    except VolumeError:
        return {}


def is_image_file(path: Path) -> bool:
    """Return True if a file is in a supported format; False for a folder or a missing file."""
    return path.is_file() and reader_for_file(path) is not None


def reader_for_name(name: str) -> Reader | None:
    """Return the reader whose suffix a file's name ends with; None if there is none."""
    return next((one for one in readers() if name.lower().endswith(one.suffixes)), None)


def format_names(paths: Iterable[Path]) -> str:
    """Return the formats of some files as text for messages: ``NIfTI``, ``NIfTI and NRRD``."""
    names = {reader.name.removesuffix(" file") for path in paths if (reader := reader_for_file(path))}
    return " and ".join(sorted(names))


@cache
def suffixes() -> tuple[str, ...]:
    """Return the suffixes of files in these formats, the longest first (``.nii.gz`` before ``.gz``)."""
    return tuple(sorted({suffix for one in readers() for suffix in one.suffixes}, key=lambda s: (-len(s), s)))


def supported_formats_text() -> str:
    """Return the formats as text: ``NIfTI file (.nii, .nii.gz) nor another supported volume (MGH, NRRD)``."""
    first, *others = readers()
    names = ", ".join(one.name.removesuffix(" file") for one in others)
    return f"{first.name} ({', '.join(first.suffixes)}) nor another supported volume ({names})"
