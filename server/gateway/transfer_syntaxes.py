"""Conversion of results to a transfer syntax that an archive accepts (PS3.5 section 10)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

HEADER_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def read_header(file: Path) -> Dataset:
    """Read the UIDs of a result, and its transfer syntax in ``file_meta``."""
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER_KEYWORDS))


def offered_syntaxes(own: UID) -> tuple[UID, ...]:
    """Return the transfer syntaxes in which a result is offered, the preferred one first.

    The last one is the default transfer syntax, which every application entity has to support (PS3.5 10.1).
    """
    return tuple(dict.fromkeys((own, ExplicitVRLittleEndian, ImplicitVRLittleEndian)))


def choose_syntax(own: UID, accepted: Iterable[UID]) -> UID | None:
    """Return the first of :func:`offered_syntaxes` that is ``accepted``; None if none is."""
    there = set(accepted)
    return next((one for one in offered_syntaxes(own) if one in there), None)


@contextlib.contextmanager
def transcoded(file: Path, syntax: UID) -> Iterator[Path]:
    """Provide a file in this transfer syntax: the file itself, or a copy that exists while the context is open.

    Raises:
        Exception: Any exception of pydicom for compressed pixels that cannot be decoded.
    """
    whole = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[])
    if whole.file_meta.TransferSyntaxUID == syntax:
        yield file
        return
    whole = pydicom.dcmread(file)
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        whole.decompress(generate_instance_uid=False)
    whole.file_meta.TransferSyntaxUID = syntax
    with tempfile.TemporaryDirectory(prefix="syntax-") as folder:
        copy = Path(folder) / "result.dcm"
        pydicom.dcmwrite(
            copy, whole, implicit_vr=syntax.is_implicit_VR, little_endian=True, enforce_file_format=True, overwrite=True
        )
        yield copy
