"""NRRD: a text header followed by its data (``.nrrd``) or with data in separate files (``.nhdr``)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import check_geometry, excess_data_warning
from semiseg.volumes.formats.nrrd_header import TEXT_ENCODINGS, NrrdHeader, is_nrrd, parse_nrrd
from semiseg.volumes.formats.reader import ImageFile, Reader, StoredImage
from semiseg.volumes.formats.stream import Compression, check_voxel_limit, read_voxel_bytes, to_array
from semiseg.volumes.scan_warning import ScanWarning

_COMPRESSION: dict[str, Compression] = {
    "raw": "none",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
}
_PATTERN = re.compile(r"(\S*%0?\d{0,2}d\S*)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?")
_MAX_FILES = 20_000
_MAX_TEXT_BYTES = 2**28  # parsing numbers from text takes many times the memory of the text


def read(file: ImageFile) -> StoredImage:
    """Read an NRRD file and the data files that a detached header names.

    An axis of the kind ``list`` or ``vector`` (or without a direction in space) holds channels, at any position.

    Raises:
        VolumeError: The file is damaged or truncated, or does not hold grey values with three axes in space and at most
            one of channels.
    """
    header = parse_nrrd(file.path)
    stored = read_with_header(file, header)
    if "Segment0_ID" not in header.pairs:
        return stored
    text = "The header declares that the voxels are the labels of a segmentation of 3D Slicer and not grey values."
    return replace(stored, warnings=(*stored.warnings, ScanWarning("declared_content", text)))


def read_with_header(file: ImageFile, header: NrrdHeader) -> StoredImage:
    """Read an NRRD file whose header was parsed already.

    Raises:
        VolumeError: See :func:`read`.
    """
    sizes, dtype = header.sizes(), header.dtype()
    channel_axis = header.channel_axis(sizes)
    affine, warnings = header.affine(channel_axis)
    in_space = [size for axis, size in enumerate(sizes) if axis != channel_axis]
    warnings = (*warnings, *check_geometry(file.path, affine, tuple(in_space)))
    array, longer = _values(file, header, sizes, dtype)
    warnings = (*warnings, *longer)
    if channel_axis is None:
        array = array[..., np.newaxis]
    elif channel_axis != 3:
        array = np.moveaxis(array, channel_axis, -1)
    return StoredImage(array, 1.0, 0.0, affine, warnings)


def _values(
    file: ImageFile, header: NrrdHeader, sizes: list[int], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], tuple[ScanWarning, ...]]:
    """Read the array in the order of its axes and in native byte order, and warn of a file that holds more bytes."""
    names = _data_files(header)
    sources = [file.find_data_file(name) for name in names] if names else [file.path]
    if len(sources) > 1 and sizes[-1] % len(sources) and math.prod(sizes[-2:]) % len(sources):
        raise VolumeError(
            f"{file.path}: {len(sources)} data files cannot hold slices of the sizes {sizes} in equal parts."
        )
    wanted = math.prod(sizes) * dtype.itemsize
    check_voxel_limit(file.path, wanted)
    encoding = header.required("encoding").lower()
    if encoding in TEXT_ENCODINGS:
        if len(sources) > 1:
            raise VolumeError(f"{file.path}: text data in several files are not supported.")
        values = _from_text(header, sources[0], 0 if names else header.length, math.prod(sizes), dtype)
        return values.reshape(sizes, order="F"), ()
    if encoding not in _COMPRESSION:
        known = ", ".join((*_COMPRESSION, *TEXT_ENCODINGS))
        raise VolumeError(f"{file.path}: the NRRD encoding '{encoding[:40]}' is not supported; these are: {known}.")
    data, longer = bytearray(), []
    for source in sources:
        start, part = 0 if names else header.length, wanted // len(sources)
        block, more = _block(header, source, start, part, _COMPRESSION[encoding])
        data = data + block if data else block
        longer += [excess_data_warning(source)] * more
    return to_array(data, dtype, sizes), tuple(longer[:1])


def _block(
    header: NrrdHeader, source: Path, offset: int, wanted: int, compression: Compression
) -> tuple[bytearray, bool]:
    """Read the bytes of one data file after the lines and bytes to skip; also return True if there are more bytes."""
    lines, skip = header.skip("line skip"), header.skip("byte skip")
    if lines < 0 or skip < -1 or (skip == -1 and compression != "none"):
        raise VolumeError(f"{header.path}: the NRRD header skips {lines} lines and {skip} bytes, which is not valid.")
    offset = _after_lines(header, source, offset, lines)
    if skip == -1:  # the data are the last bytes of the file
        return read_voxel_bytes(header.path, source, max(source.stat().st_size - wanted, offset), wanted, "none")
    if compression == "none":
        return read_voxel_bytes(header.path, source, offset + skip, wanted, "none")
    # Lines are skipped in the file itself, bytes in the unpacked stream.
    data, more = read_voxel_bytes(header.path, source, offset, skip + wanted, compression)
    return data[skip:], more


def _after_lines(header: NrrdHeader, source: Path, offset: int, lines: int) -> int:
    with source.open("rb") as stream:
        stream.seek(offset)
        for _ in range(lines):
            if not stream.readline(2**20):
                raise VolumeError(f"{header.path}: the header skips {lines} lines, but {source.name} has fewer.")
        return stream.tell()


def _from_text(header: NrrdHeader, source: Path, offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = source.stat().st_size
    if size > _MAX_TEXT_BYTES:
        raise VolumeError(f"{header.path}: voxels as text may have up to {_MAX_TEXT_BYTES} bytes; these have {size}.")
    if 2 * count - 1 > size:  # each number needs a digit and a space
        raise VolumeError(
            f"{header.path}: the header declares {count} numbers, but a file of {size} bytes cannot hold them; it is "
            "cut short or damaged."
        )
    with source.open("rb") as stream:
        stream.seek(_after_lines(header, source, offset, header.skip("line skip")))
        words = stream.read().split()
    if len(words) < count:
        raise VolumeError(f"{header.path}: the file ends after {len(words)} of {count} numbers; it is cut short.")
    try:
        return (
            np.array(words[:count])
            .astype(np.float64 if dtype.kind == "f" else np.int64)
            .astype(dtype.newbyteorder("="))
        )
    except (ValueError, OverflowError) as error:
        raise VolumeError(f"{header.path}: the voxels are not numbers of the declared type ({error}).") from error


def _data_files(header: NrrdHeader) -> Sequence[str]:
    """Return the names of the data files; none if the data follow the header."""
    name = header.fields.get("data file")
    if name is None:
        return ()
    if name.upper().split()[:1] == ["LIST"]:
        if not header.listed or len(header.listed) > _MAX_FILES:
            raise VolumeError(f"{header.path}: the NRRD header lists {len(header.listed)} data files.")
        return header.listed
    return numbered_names(header.path, name) or (name,)


def numbered_names(path: Path, text: str) -> list[str]:
    """Expand a pattern such as ``slice%03d.raw 1 20 1`` (first, last, step); empty if the text is not a pattern.

    Raises:
        VolumeError: The pattern names no files or more than 20,000.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return []
    pattern, first, last, step = match[1], int(match[2]), int(match[3]), int(match[4])
    count = (last - first) // step + 1 if step else 0
    if not 0 < count <= _MAX_FILES or pattern.count("%") != 1:
        raise VolumeError(f"{path}: the header names the data files '{text[:80]}', which gives {count} files.")
    return [pattern % number for number in range(first, first + count * step, step)]


def _parts(file: ImageFile) -> dict[str, Path]:
    names = _data_files(parse_nrrd(file.path))
    return {"scan.nhdr": file.path, **{name: file.find_data_file(name) for name in names}} if names else {}


READER = Reader("NRRD file", (".seg.nrrd", ".nrrd", ".nhdr"), is_nrrd, read, parts=_parts)
