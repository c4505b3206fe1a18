"""Reads the bytes of voxels from files whose headers are not trusted.

The declared size is compared with the size that the file can hold before any memory is allocated. Memory then grows
with the bytes that are read, never with the declared number.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError

MAX_VOXEL_BYTES = 2**34
"""Maximum size of the voxels of a volume, 16 GiB; scans that a network segments are much smaller."""

MAX_HEADER_BYTES = 2**20
"""Maximum length of a text header; Slicer's segmentations with hundreds of segments stay below a third of it."""

Compression = Literal["none", "gzip", "zlib", "bzip2"]
_RATIOS = {"none": 1, "gzip": 1032, "zlib": 1032, "bzip2": 2**20}  # maximum expansion (deflate: zlib's own figure)
_CHUNK = 2**24
_START = 1024


class Readable(Protocol):
    """A source of bytes that is read in parts."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes; none at the end."""


def is_gzip(path: Path) -> bool:
    """Return True if the file's first bytes are those of a gzip stream."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_unpacked(path: Path) -> IO[bytes]:
    """Open a file that is unpacked during reading if it is a gzip stream."""
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip(path) else path.open("rb")


def read_start(path: Path) -> bytes:
    """Read the first 1024 bytes of a file, unpacked if it is a gzip stream; none if it cannot be read."""
    try:
        with open_unpacked(path) as file:
            return file.read(_START)
    except (OSError, EOFError, zlib.error):
        return b""


def read_voxel_bytes(
    header: Path, source: Path, offset: int, wanted: int, compression: Compression | None = None
) -> tuple[bytearray, bool]:
    """Read exactly ``wanted`` bytes.

    Args:
        header: File that declares the bytes, for messages.
        source: File that holds the bytes.
        offset: Position of the first byte, in the unpacked stream for ``compression=None``, else in the file itself.
        wanted: Number of bytes.
        compression: Compression of the bytes from ``offset`` on; None if the whole file may be a gzip stream.

    Returns:
        The bytes, and True if the file holds more of them.

    Raises:
        VolumeError: The file cannot hold so many bytes, ends too early, or is damaged.
    """
    check_voxel_limit(header, wanted)
    try:
        size = source.stat().st_size
        whole = compression is None
        kind: Compression = compression or ("gzip" if is_gzip(source) else "none")
        from_start = whole or kind == "none"  # the bytes before ``offset`` come out of the same stream
        needed = offset + wanted if from_start else wanted
        if needed > _RATIOS[kind] * (size if from_start else max(size - offset, 0)):
            raise VolumeError(
                f"{header}: the header declares {needed} bytes, but a file of {size} bytes cannot hold them; it is cut "
                "short or damaged."
            )
        with open_unpacked(source) if whole else source.open("rb") as file:
            file.seek(offset)
            return _taken(header, file if whole else _unpacked(file, kind), wanted)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(f"{source}: the compressed stream is damaged or cut short ({error}).") from error
    except OSError as error:
        raise VolumeError(f"{source}: cannot be read ({error.strerror or error}).") from error


def check_voxel_limit(header: Path, wanted: int) -> None:
    """Refuse a number of bytes that no scan has.

    Raises:
        VolumeError: ``wanted`` bytes are more than :data:`MAX_VOXEL_BYTES`.
    """
    if wanted > MAX_VOXEL_BYTES:
        raise VolumeError(f"{header}: the header declares {wanted} bytes of voxels; the limit is {MAX_VOXEL_BYTES}.")


def to_array(data: bytearray, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Make an array of ``shape``, whose first axis is the fastest in ``data``, in native byte order."""
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _taken(header: Path, stream: Readable, wanted: int) -> tuple[bytearray, bool]:
    data = bytearray()
    while len(data) < wanted:
        chunk = stream.read(min(wanted - len(data), _CHUNK))
        if not chunk:
            raise VolumeError(
                f"{header}: the file ends after {len(data)} of {wanted} bytes of voxels; it is cut short."
            )
        data += chunk
    return data, bool(stream.read(1))  # lets gzip reach the end and compare its checksum


def _unpacked(file: IO[bytes], compression: Compression) -> Readable:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == "bzip2":
        return bz2.BZ2File(file)
    return _Inflated(file) if compression == "zlib" else file


class _Inflated:
    """A zlib stream (or gzip, since MetaIO accepts both) that is unpacked in parts."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes of the unpacked stream."""
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(2**16)
            if not packed:
                raise EOFError("its end is missing")
            if out := self._inflater.decompress(packed, size):
                return out
        return b""
