"""Volume files written byte by byte, for tests whose expected values stand beside them."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.image_files import read_image_file
from semiseg.volumes.nifti import read_nifti

SHAPE = (4, 3, 2)
VALUES = np.arange(24, dtype=np.int16).reshape(SHAPE, order="F")
"""Numbered in the order of the file: the first axis is the fastest."""

CHANNELS = np.stack([VALUES, VALUES + 100], axis=-1)
"""Two channels (X, Y, Z, K)."""

AFFINE = np.array([[0, 0, -4.0, 10], [2, 0, 0, 20], [0, 3, 0, 30], [0, 0, 0, 1]])
"""First axis to anterior by 2 mm, second to superior by 3 mm, third to the left by 4 mm."""

NRRD = {
    "type": "short",
    "dimension": "3",
    "sizes": "4 3 2",
    "space": "right-anterior-superior",
    "space directions": "(0,2,0) (0,0,3) (-4,0,0)",
    "space origin": "(10,20,30)",
    "endian": "little",
    "encoding": "raw",
}

META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "0 -1 0 0 0 1 1 0 0",
    "Offset": "-10 -20 30",
    "ElementSpacing": "2 3 4",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
}


def little_endian(values: np.ndarray = VALUES) -> bytes:
    return values.astype("<i2").tobytes(order="F")


def big_endian(values: np.ndarray = VALUES) -> bytes:
    return values.astype(">i2").tobytes(order="F")


def make_nrrd(
    path: Path, fields: Mapping[str, str | None] | None = None, data: bytes | None = None, more: str = ""
) -> Path:
    """Write an NRRD file; a field that is None is left out."""
    lines = [f"{name}: {value}" for name, value in {**NRRD, **(fields or {})}.items() if value is not None]
    header = "\n".join(["NRRD0004", "# by hand", *lines]) + "\n" + more
    detached = any(line.startswith("data file") for line in lines)
    path.write_bytes(header.encode() + (b"" if detached else b"\n" + (little_endian() if data is None else data)))
    return path


def make_metaimage(
    path: Path, tags: Mapping[str, str | None] | None = None, data: bytes | None = None, file: str = "LOCAL"
) -> Path:
    """Write a MetaImage file; a tag that is None is left out."""
    lines = [f"{name} = {value}" for name, value in {**META, **(tags or {})}.items() if value is not None]
    header = "\n".join([*lines, f"ElementDataFile = {file}"]) + "\n"
    path.write_bytes(header.encode() + ((little_endian() if data is None else data) if file == "LOCAL" else b""))
    return path


def make_mgh(path: Path, values: np.ndarray = VALUES, *, oriented: bool = True, kind: int = 4) -> Path:
    """Write an MGH file, packed if its name says so, with the voxels of :data:`AFFINE`."""
    steps = AFFINE[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    centre = steps @ (np.array(SHAPE) / 2) + AFFINE[:3, 3]
    header = struct.pack(">7ih", 1, *SHAPE, 1, kind, 0, int(oriented))
    header += struct.pack(">15f", *spacing, *(steps / spacing).T.ravel(), *centre)
    content = header.ljust(284, b"\0") + values.astype({4: ">i2", 3: ">f4", 0: "u1"}[kind]).tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".mgz" else content)
    return path


def nifti_file(**fields: Any) -> bytearray:
    """A NIfTI-1 file of :data:`VALUES`, axes along R, A and S by 2, 3 and 4 mm from (10, 20, 30), changed at will."""
    told: dict[str, Any] = {
        "dim": (3, 4, 3, 2, 1, 1, 1, 1),
        "intent": 0,
        "datatype": 4,
        "bitpix": 16,
        "pixdim": (1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0),
        "vox_offset": 352.0,
        "scl": (1.0, 0.0),
        "unit": 2,
        "codes": (1, 1),
        "quatern": (0.0, 0.0, 0.0),
        "qoffset": (10.0, 20.0, 30.0),
        "magic": b"n+1\0",
        "extension": bytes(4),
        "data": little_endian(),
    } | fields
    if "srow" not in fields:
        rows = np.diag([2.0, 3.0, 4.0, 1.0])[:3].copy()
        rows[:, 3] = told["qoffset"]
        told["srow"] = tuple(rows.ravel())
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, *told["dim"])
    struct.pack_into("<h", header, 68, told["intent"])
    struct.pack_into("<hh", header, 70, told["datatype"], told["bitpix"])
    struct.pack_into("<8f", header, 76, *told["pixdim"])
    struct.pack_into("<f", header, 108, told["vox_offset"])
    struct.pack_into("<ff", header, 112, *told["scl"])
    header[123] = told["unit"]
    struct.pack_into("<hh", header, 252, told["codes"][1], told["codes"][0])  # qform_code, sform_code
    struct.pack_into("<3f", header, 256, *told["quatern"])
    struct.pack_into("<3f", header, 268, *told["qoffset"])
    struct.pack_into("<12f", header, 280, *told["srow"])
    header[344:348] = told["magic"]
    return header + told["extension"] + told["data"]


def zlib_compressed(data: bytes) -> bytes:
    return zlib.compress(data)


def remark_codes(path: Path) -> list[str]:
    return [remark.code for remark in read_image_file(path).warnings]


def assert_refused(path: Path, sentence: str) -> None:
    """Reading the file is refused in one line that names it and says ``sentence``, a pattern."""
    with pytest.raises(VolumeError, match=rf"{re.escape(path.name)}: .*{sentence}.*\.$") as caught:
        read_nifti(path)
    assert "\n" not in str(caught.value)


def assert_as_written(path: Path, remarks: tuple[str, ...] = ()) -> None:
    volume = read_nifti(path)
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert remark_codes(path) == list(remarks)


def numbered_array(shape: tuple[int, ...] = (4, 5, 6), dtype: type = np.int16) -> NDArray[Any]:
    """An array of 0, 1, 2, ... with the last axis the fastest."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)
