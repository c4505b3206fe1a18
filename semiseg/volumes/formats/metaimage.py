"""MetaImage: a text header followed by its data (``.mha``) or with data in separate files (``.mhd``).

The tags are those of https://itk.org/Wiki/ITK/MetaIO/Documentation. World coordinates are DICOM's (left, posterior,
superior), as in ITK, which reads and writes most of these files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel.orientations as nio
import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import LPS_TO_RAS, check_geometry, excess_data_warning, no_orientation_warning
from semiseg.volumes.formats.nrrd import numbered_names
from semiseg.volumes.formats.reader import ImageFile, Reader, StoredImage
from semiseg.volumes.formats.stream import MAX_HEADER_BYTES, Compression, check_voxel_limit, read_voxel_bytes, to_array
from semiseg.volumes.scan_warning import ScanWarning

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # 4 bytes in MetaIO on every system
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_ORIENTATION = ("TransformMatrix", "Rotation", "Orientation")
_ORIGIN = ("Offset", "Position", "Origin")
_SPACING = ("ElementSpacing", "ElementSize")
_TAG = re.compile(rb"\s*([A-Za-z][A-Za-z0-9_]*)\s*=")


@dataclass(frozen=True)
class _Header:
    """Tags by name, the names of listed data files, and the length of the header in bytes."""

    path: Path
    tags: dict[str, str]
    listed: tuple[str, ...]
    length: int

    def one_of(self, names: tuple[str, ...]) -> str | None:
        return next((self.tags[name] for name in names if name in self.tags), None)

    def true(self, name: str, *, default: bool = False) -> bool:
        word = self.tags.get(name)
        return default if word is None else word[:1].lower() in ("t", "1", "y")

    def numbers(self, name: str, text: str, count: int) -> NDArray[np.float64]:
        try:
            values = np.array([float(word) for word in text.split()])
        except ValueError:
            values = np.array([])
        if values.size != count or not np.isfinite(values).all():
            raise VolumeError(f"{self.path}: MetaImage's {name} is '{text[:80]}'; {count} finite numbers are required.")
        return values

    def integer(self, name: str, default: int) -> int:
        word = self.tags.get(name, str(default))
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
            raise VolumeError(f"{self.path}: MetaImage's {name} is '{word[:40]}'; an integer is required.")
        return int(word)


def read(file: ImageFile) -> StoredImage:
    """Read a MetaImage file and the data files that its header names.

    Raises:
        VolumeError: The file is damaged or truncated, or is not a 3D image of grey values with channels.
    """
    header = _parse(file.path)
    path, dimension = file.path, header.integer("NDims", 0)
    if header.tags.get("ObjectType", "Image") != "Image":
        raise VolumeError(f"{path}: a MetaImage of the type {header.tags['ObjectType'][:40]} is not an image.")
    if dimension not in (3, 4):
        raise VolumeError(f"{path}: a 3D or 4D image is needed, but MetaImage's NDims is {dimension}.")
    declared = header.numbers("DimSize", header.tags.get("DimSize", ""), dimension)
    sizes = [int(n) for n in declared]
    channels = header.integer("ElementNumberOfChannels", 1)
    if (
        any(n < 1 for n in sizes)
        or sizes != declared.tolist()
        or channels < 1
        or (channels > 1 and math.prod(sizes[3:]) > 1)
    ):
        raise VolumeError(
            f"{path}: a MetaImage of the sizes {sizes} with {channels} channel(s) is not a 3D image with channels."
        )
    affine, warnings = _affine(header, dimension)
    warnings = (*warnings, *check_geometry(path, affine, tuple(sizes)))
    slope, intercept = _scaling(header)
    if (slope, intercept) != (1.0, 0.0):
        text = (
            f"The values were multiplied by {slope:g} and {intercept:g} was added, as the header declares; ITK does "
            "not do this."
        )
        warnings = (*warnings, ScanWarning("uncertain_scaling", text))
    array, longer = _values(file, header, [channels, *sizes], _dtype(header))
    warnings = (*warnings, *longer)
    array = np.moveaxis(array.reshape(channels, *sizes[:3], -1, order="F"), 0, -1)
    return StoredImage(array.reshape(*sizes[:3], -1), slope, intercept, affine, warnings)


def _affine(header: _Header, dimension: int) -> tuple[NDArray[np.float64], tuple[ScanWarning, ...]]:
    matrix, spacing = header.one_of(_ORIENTATION), header.one_of(_SPACING)
    origin, letters = header.one_of(_ORIGIN), header.tags.get("AnatomicalOrientation", "").upper()
    warnings = []
    directions = np.eye(3)
    if matrix is not None:
        # Each group of consecutive numbers is the direction of one axis.
        directions = header.numbers("TransformMatrix", matrix, dimension**2).reshape(dimension, dimension)[:3, :3].T
    affine = np.eye(4)
    steps = np.ones(3) if spacing is None else header.numbers("ElementSpacing", spacing, dimension)[:3]
    if spacing is None:
        warnings.append(
            ScanWarning("contradictory_header", "MetaImage's ElementSpacing is missing; voxels of 1 mm were assumed.")
        )
    affine[:3, :3] = directions * steps
    affine[:3, 3] = np.zeros(3) if origin is None else header.numbers("Offset", origin, dimension)[:3]
    affine = LPS_TO_RAS @ affine
    known = re.fullmatch("[RLAPSI]{3}", letters) is not None
    if matrix is None and not known:
        why = "MetaImage's TransformMatrix is missing"
        warnings.append(
            no_orientation_warning(why, "the axes of DICOM (left, posterior, superior) were assumed, as in ITK")
        )
    elif known and np.linalg.matrix_rank(affine[:3, :3]) == 3:
        # AnatomicalOrientation names the side from which each axis runs, nibabel the side to which it runs.
        going = "".join(code or "?" for code in nio.aff2axcodes(affine))
        coming = going.translate(str.maketrans("RLAPSI", "LRPAIS"))
        if coming != letters:
            text = f"AnatomicalOrientation is {letters} and TransformMatrix means {coming}; TransformMatrix was used."
            if matrix is None:
                text = (
                    f"AnatomicalOrientation is {letters} and there is no TransformMatrix; RAI was assumed, as in ITK."
                )
            warnings.append(ScanWarning("contradictory_orientation", f"The header contradicts itself: {text}"))
    return affine, tuple(warnings)


def _dtype(header: _Header) -> np.dtype[Any]:
    name = header.tags.get("ElementType", "")
    code = _TYPES.get(name.removesuffix("_ARRAY"))
    if code is None:
        raise VolumeError(f"{header.path}: voxels of MetaImage's type '{name[:40]}' are not grey values.")
    big = header.true("BinaryDataByteOrderMSB", default=header.true("ElementByteOrderMSB"))
    return np.dtype((">" if big else "<") + code)


def _scaling(header: _Header) -> tuple[float, float]:
    found = [
        float(header.numbers(name, header.tags.get(name, default), 1)[0])
        for name, default in (("ElementToIntensityFunctionSlope", "1"), ("ElementToIntensityFunctionOffset", "0"))
    ]
    return (found[0] or 1.0, found[1])


def _values(
    file: ImageFile, header: _Header, sizes: list[int], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], tuple[ScanWarning, ...]]:
    """Read the array in the order of its axes and in native byte order, and warn of a file that holds more bytes."""
    if not header.true("BinaryData", default=True):
        raise VolumeError(f"{file.path}: a MetaImage whose voxels are text (BinaryData = False) is not supported.")
    wanted = math.prod(sizes) * dtype.itemsize
    check_voxel_limit(file.path, wanted)
    names = _data_files(header)
    sources = [file.find_data_file(name) for name in names] if names else [file.path]
    if len(sources) > 1 and sizes[-1] % len(sources):
        raise VolumeError(f"{file.path}: {len(sources)} data files cannot hold {sizes[-1]} slices in equal parts.")
    compression: Compression = "zlib" if header.true("CompressedData") else "none"
    skip, part = header.integer("HeaderSize", 0), wanted // len(sources)
    data, longer = bytearray(), []
    for source in sources:
        offset = header.length if not names else skip
        if names and skip == -1:
            if compression != "none":
                raise VolumeError(f"{file.path}: MetaImage's HeaderSize of -1 is not allowed for compressed data.")
            offset = max(source.stat().st_size - part, 0)
        if offset < 0:
            raise VolumeError(f"{file.path}: MetaImage's HeaderSize is {skip}, which is not valid.")
        block, more = read_voxel_bytes(file.path, source, offset, part, compression)
        data = data + block if data else block
        if more and header.tags["ElementType"] in ("MET_LONG", "MET_ULONG"):
            raise VolumeError(
                f"{file.path}: MetaImage's {header.tags['ElementType']} has 4 bytes, but {source.name} holds more; it "
                "may have been written with 8."
            )
        longer += [excess_data_warning(source)] * more
    return to_array(data, dtype, sizes), tuple(longer[:1])


def _data_files(header: _Header) -> list[str]:
    """Return the names of the data files; none if the data follow the header."""
    name = header.tags["ElementDataFile"]
    if name.upper() == "LOCAL":
        return []
    if name.upper().split()[:1] == ["LIST"]:
        return list(header.listed)
    return numbered_names(header.path, name) or [name]


def _parse(path: Path) -> _Header:
    """Parse the header: lines ``Tag = value``, the last of which is ElementDataFile."""
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    tags: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in tags:
        end = start.find(b"\n", position)
        line = start[position:] if end < 0 else start[position:end]
        if not line.strip() and end < 0:
            raise VolumeError(f"{path}: the MetaImage header has no ElementDataFile, so it is damaged.")
        name, separator, value = line.decode("utf-8", "replace").partition("=")
        if line.strip():
            if not separator:
                raise VolumeError(f"{path}: the MetaImage header is damaged (line {len(tags) + 1} is not a tag).")
            if name.strip() in tags:
                raise VolumeError(f"{path}: the MetaImage header has the tag '{name.strip()[:60]}' twice.")
            tags[name.strip()] = value.strip()
        position = len(start) if end < 0 else end + 1
    listed: tuple[str, ...] = ()
    if tags["ElementDataFile"].upper().startswith("LIST"):
        listed = tuple(
            name.strip() for name in start[position:].decode("utf-8", "replace").splitlines() if name.strip()
        )
        if not listed:
            raise VolumeError(f"{path}: the MetaImage header lists no data files.")
    return _Header(path, tags, listed, position)


def _recognises(start: bytes) -> bool:
    return _TAG.match(start) is not None and b"NDims" in start and (b"DimSize" in start or b"ElementDataFile" in start)


def _parts(file: ImageFile) -> dict[str, Path]:
    names = _data_files(_parse(file.path))
    return {"scan.mhd": file.path, **{name: file.find_data_file(name) for name in names}} if names else {}


READER = Reader("MetaImage file", (".mha", ".mhd"), _recognises, read, parts=_parts)
