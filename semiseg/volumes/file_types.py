"""Describes files that are not volumes, for error messages.

Only the first bytes of a file are examined, and its name only if the content is not recognised.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from semiseg.volumes.archives import archive_type
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.formats.registry import is_image_file, reader_for_bytes, reader_for_name, supported_formats_text
from semiseg.volumes.formats.stream import is_gzip, open_unpacked

_LOOKED_AT = 2**16
_MAGICS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a TIFF picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array, which has no position in the patient"),
    (b"MATLAB", "a MATLAB file"),
    (b"# vtk DataFile", "a VTK file"),
    (b"<?xml", "an XML file"),
    (b"#INRIMAGE", "an INRIA image"),
    (b"CDF\x01", "a MINC or NetCDF file"),
    (b"CDF\x02", "a MINC or NetCDF file"),
)
_NNUNET = (
    (b'"file_ending"', "an nnU-Net dataset.json, which describes scans but is not a scan"),
    (b'"channel_names"', "an nnU-Net dataset.json, which describes scans but is not a scan"),
    (b'"numTraining"', "an nnU-Net dataset.json, which describes scans but is not a scan"),
    (b'"plans_name"', "the plans of an nnU-Net"),
    (b'"patient_identifier"', "an nnU-Net file about cases"),
)
_DATA_SUFFIXES = (".img.gz", ".raw.gz", ".img", ".raw", ".zraw", ".bin")
_HEADER_SUFFIXES = (".hdr.gz", ".hdr", ".mhd", ".nhdr")


def describe_file(path: Path, name: str = "") -> str:
    """Describe a file that no reader recognises, such as "a tar archive"; no content makes it raise an error.

    Args:
        path: The file.
        name: Original name of the file, if ``path`` is a copy under another name.
    """
    name = (name or path.name).lower()
    try:
        if path.stat().st_size == 0:
            return "an empty file (0 bytes)"
        if is_dicom(path):
            return "a DICOM file"
        packed = is_gzip(path)
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror or error})"
    if packed:
        return _in_gzip(path, name)
    return _by_content(start) or _by_name(name) or _rest(start)


def has_detached_header(path: Path) -> bool:
    """Return True if a file holds the voxels of a pair whose header of the same name is in the same folder."""
    stem = _stem(path.name, _DATA_SUFFIXES)
    return stem is not None and any(is_image_file(path.with_name(stem + other)) for other in _HEADER_SUFFIXES)


def detached_data_files(names: Mapping[Path, str], headers: Iterable[Path]) -> frozenset[Path]:
    """Return the files whose names show that they hold the voxels of one of the headers.

    Args:
        names: Names that the files have in their zip, by path; "" for a file with its own name.
        headers: Those of the files that a reader recognises.
    """
    called = {path: name or str(path) for path, name in names.items()}
    stems = {_stem(called[path].lower(), _HEADER_SUFFIXES) for path in headers} - {None}
    return frozenset(path for path, name in called.items() if _stem(name.lower(), _DATA_SUFFIXES) in stems)


def _stem(name: str, suffixes: tuple[str, ...]) -> str | None:
    """Return the name without its suffix if that is one of ``suffixes``, else None."""
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), None)
    return None if suffix is None else name[: -len(suffix)]


def unsupported_file_text(path: Path) -> str:
    """Describe an unsupported file and name the supported inputs, as part of a sentence."""
    return f"this is {describe_file(path)}, {supported_inputs_text()}"


def supported_inputs_text() -> str:
    """Name the supported inputs, as the part of a sentence that begins with "neither"."""
    return f"neither a {supported_formats_text()} nor DICOM images nor a zip of those"


def _in_gzip(path: Path, name: str) -> str:
    try:
        with open_unpacked(path) as file:
            start = file.read(_LOOKED_AT)
    except (OSError, EOFError, zlib.error):
        return _by_name(name, "its gzip stream is damaged") or "a damaged gzip file"
    if start[128:132] == b"DICM":
        return "a gzip of a DICOM file; unpack it"
    reader = reader_for_bytes(start)
    if reader is not None:
        return f"a gzip of {reader.with_article}; unpack it"
    inside = _by_content(start)
    if inside is not None and not inside.startswith("an nnU-Net"):
        return f"a gzip of {inside}"
    return _by_name(name) or "a gzip of something else"


def _by_content(start: bytes) -> str | None:
    archive = archive_type(start)
    if archive is not None:
        return f"a {archive} archive"
    for magic, words in _MAGICS:
        if start.startswith(magic):
            return words
    if start.lstrip()[:1] in (b"{", b"["):
        return next((words for key, words in _NNUNET if key in start), "a JSON file")
    return None


def _by_name(name: str, why: str = "") -> str | None:
    reader = reader_for_name(name)
    if reader is not None:
        return f"a broken {reader.name} ({why or f'its content is not {reader.with_article}'})"
    if name.endswith(_DATA_SUFFIXES):
        return "the voxels of a pair without its header; give the header"
    return None


def _rest(start: bytes) -> str:
    text = b"\0" not in start and all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)
    return "a text file" if text else "a file of an unknown kind"
