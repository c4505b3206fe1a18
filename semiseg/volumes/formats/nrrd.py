"""NRRD: a text header with its data behind it (``.nrrd``) or in files beside it (``.nhdr``)."""

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
_MAX_TEXT_BYTES = 2**28  # numbers as text take many times their bytes while they are parsed


def read(file: ImageFile) -> StoredImage:
    """Read an NRRD file, with the data files that a detached header names.

    An axis of the kind ``list`` or ``vector`` (or without a direction in space) holds channels, wherever it stands.

    Raises:
        VolumeError: Damaged, truncated, or not one to four axes of grey values in space.
    """
    header = parse_nrrd(file.path)
    stored = read_with_header(file, header)
    if "Segment0_ID" not in header.pairs:
        return stored
    text = "The header says that the voxels are the labels of a segmentation of 3D Slicer and not grey values."
    return replace(stored, warnings=(*stored.warnings, ScanWarning("declared_content", text)))


def read_with_header(file: ImageFile, header: NrrdHeader) -> StoredImage:
    """The same with a header that was parsed already.

    Raises:
        VolumeError: see :func:`read`.
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
    """The array in the order of its axes, in native byte order, and a remark where a file holds more."""
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
            raise VolumeError(f"{file.path}: text data in several files is not read.")
        values = _from_text(header, sources[0], 0 if names else header.length, math.prod(sizes), dtype)
        return values.reshape(sizes, order="F"), ()
    if encoding not in _COMPRESSION:
        known = ", ".join((*_COMPRESSION, *TEXT_ENCODINGS))
        raise VolumeError(f"{file.path}: the NRRD encoding '{encoding[:40]}' is not read; these are: {known}.")
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
    """The bytes of one data file, after the lines and bytes that are to be skipped, and True if there are more."""
    lines, skip = header.skip("line skip"), header.skip("byte skip")
    if lines < 0 or skip < -1 or (skip == -1 and compression != "none"):
        raise VolumeError(f"{header.path}: the NRRD header skips {lines} lines and {skip} bytes, which cannot be.")
    offset = _after_lines(header, source, offset, lines)
    if skip == -1:  # the data are the last bytes of the file
        return read_voxel_bytes(header.path, source, max(source.stat().st_size - wanted, offset), wanted, "none")
    if compression == "none":
        return read_voxel_bytes(header.path, source, offset + skip, wanted, "none")
    # Lines are skipped in the file itself, bytes in what it unpacks to.
    data, more = read_voxel_bytes(header.path, source, offset, skip + wanted, compression)
    return data[skip:], more


def _after_lines(header: NrrdHeader, source: Path, offset: int, lines: int) -> int:
    with source.open("rb") as stream:
        stream.seek(offset)
        for _ in range(lines):
            if not stream.readline(2**20):
                raise VolumeError(f"{header.path}: the header skips {lines} lines, and {source.name} has fewer.")
        return stream.tell()


def _from_text(header: NrrdHeader, source: Path, offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = source.stat().st_size
    if size > _MAX_TEXT_BYTES:
        raise VolumeError(f"{header.path}: voxels as text are read up to {_MAX_TEXT_BYTES} bytes; these are {size}.")
    if 2 * count - 1 > size:  # a digit and a space for each
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
        raise VolumeError(f"{header.path}: the voxels are no numbers of the declared type ({error}).") from error


def _data_files(header: NrrdHeader) -> Sequence[str]:
    """Names of the data files; none where the data follow the header."""
    name = header.fields.get("data file")
    if name is None:
        return ()
    if name.upper().split()[:1] == ["LIST"]:
        if not header.listed or len(header.listed) > _MAX_FILES:
            raise VolumeError(f"{header.path}: the NRRD header lists {len(header.listed)} data files.")
        return header.listed
    return numbered_names(header.path, name) or (name,)


def numbered_names(path: Path, text: str) -> list[str]:
    """Names from ``slice%03d.raw 1 20 1`` (first, last, step); none where the text is no such pattern.

    Raises:
        VolumeError: The pattern counts nowhere, or names more than 20,000 files.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return []
    pattern, first, last, step = match[1], int(match[2]), int(match[3]), int(match[4])
    count = (last - first) // step + 1 if step else 0
    if not 0 < count <= _MAX_FILES or pattern.count("%") != 1:
        raise VolumeError(f"{path}: the header names the data files '{text[:80]}', which counts {count} files.")
    return [pattern % number for number in range(first, first + count * step, step)]


def _parts(file: ImageFile) -> dict[str, Path]:
    names = _data_files(parse_nrrd(file.path))
    return {"scan.nhdr": file.path, **{name: file.find_data_file(name) for name in names}} if names else {}


READER = Reader("NRRD file", (".seg.nrrd", ".nrrd", ".nhdr"), is_nrrd, read, parts=_parts)
