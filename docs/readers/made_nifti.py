"""Generated NIfTI files whose volume is known by construction, packed as nifti1.h and nifti2.h lay them out.

    python -m docs.readers.made_nifti FOLDER

It needs numpy alone. The folder gets what ``generate`` writes: a folder a case, and ``cases.jsonl``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SHAPE = (5, 4, 3)
TYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}
QUATERNION = (0.1, 0.2, -0.3)
OFFSETS = (-20.5, 11.25, 7.0)
SPACING = (1.5, 0.75, 3.0)
SROW = ((0.0, -0.75, 0.0, 40.0), (1.5, 0.0, 0.0, -12.0), (0.0, 0.0, 3.0, 5.5))


@dataclass(frozen=True)
class NiftiCase:
    """One file: its header fields, what surrounds them, and whether a reader has to read it.

    Attributes:
        name: the case.
        must: read, refuse or either.
        why: statement of nifti1.h.
        affine: the truth; "sform", "qform" or "pixdim" (methods 3, 2 and 1 of nifti1.h).
    """

    name: str
    must: Literal["read", "refuse", "either"] = "read"
    why: str = ""
    version: int = 1
    order: Literal["<", ">"] = "<"
    kind: str = "i2"
    code: int | None = None
    bitpix: int | None = None
    dim: tuple[int, ...] = (3, 5, 4, 3, 1, 1, 1, 1)
    pixdim: tuple[float, ...] = (1.0, *SPACING, 0.0, 0.0, 0.0, 0.0)
    slope: float = 1.0
    intercept: float = 0.0
    codes: tuple[int, int] = (0, 1)  # qform_code, sform_code
    quaternion: tuple[float, float, float] = QUATERNION
    srow: tuple[tuple[float, ...], ...] = SROW
    units: int = 2
    offset: float | None = None
    extension: bytes = b""
    magic: bytes | None = None
    zipped: bool = False
    cut: int = 0
    trailing: int = 0
    affine: Literal["sform", "qform", "pixdim"] = "sform"
    scale_mm: float = 1.0
    nan: bool = False
    intent: int = 0


def header(case: NiftiCase) -> bytes:
    """The header, with its four extension bytes."""
    code = TYPES[case.kind] if case.code is None else case.code
    bits = np.dtype(case.kind).itemsize * 8 if case.bitpix is None else case.bitpix
    after = (352 if case.version == 1 else 544) + len(case.extension)
    offset = after if case.offset is None else case.offset
    srow = [value for row in case.srow for value in row]
    o, (q, s) = case.order, case.codes
    if case.version == 1:
        magic = case.magic or b"n+1\0"
        out = struct.pack(f"{o}i35xB8h", 348, 0, *case.dim)
        out += struct.pack(f"{o}3f4h", 0, 0, 0, case.intent, code, bits, 0)
        out += struct.pack(f"{o}8f3fhBB", *case.pixdim, offset, case.slope, case.intercept, 0, 0, case.units)
        out += struct.pack(f"{o}4f2i80s24s", 0, 0, 0, 0, 0, 0, b"", b"")
        out += struct.pack(f"{o}2h6f12f16s4s", q, s, *case.quaternion, *OFFSETS, *srow, b"", magic)
    else:
        magic = case.magic or b"n+2\0\r\n\x1a\n"
        out = struct.pack(f"{o}i8s2h8q3d8dq", 540, magic, code, bits, *case.dim, 0, 0, 0, *case.pixdim, int(offset))
        out += struct.pack(f"{o}6d2q80s24s2i", case.slope, case.intercept, 0, 0, 0, 0, 0, 0, b"", b"", q, s)
        out += struct.pack(f"{o}6d12d3i16sB15x", *case.quaternion, *OFFSETS, *srow, 0, case.units, case.intent, b"", 0)
    return out + (b"\1\0\0\0" if case.extension else b"\0\0\0\0") + case.extension


def write(case: NiftiCase, folder: Path, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Write a file, and return the true array (X, Y, Z) and affine."""
    dtype = np.dtype(case.kind).newbyteorder(case.order)
    shape = tuple(case.dim[1 : 1 + max(3, min(case.dim[0], 7))]) if 0 < case.dim[0] < 8 else SHAPE
    values: NDArray[Any]
    if dtype.kind == "f":
        values = rng.normal(0, 300, shape).astype(dtype)
        if case.nan:
            values[0, 0, 0] = np.nan
    else:
        limits = np.iinfo(np.dtype(case.kind))
        low, high = max(int(limits.min), -(2**40)), min(int(limits.max), 2**40)
        values = rng.integers(low, high, shape, endpoint=True, dtype=np.int64).astype(dtype)
    data = header(case) + values.tobytes(order="F") + bytes(case.trailing)
    data = data[: len(data) - case.cut] if case.cut and not case.zipped else data
    if case.zipped:
        packed = gzip.compress(data, mtime=0)
        data = packed[: len(packed) - case.cut] if case.cut else packed
    (folder / ("scan.nii.gz" if case.zipped else "scan.nii")).write_bytes(data)
    scaled = case.slope != 0 and np.isfinite(case.slope)
    true = values.astype(np.float64) * case.slope + case.intercept if scaled else values.astype(np.float64)
    return true.reshape((*true.shape[:3], -1))[..., 0], truth_affine(case)


def truth_affine(case: NiftiCase) -> NDArray[np.float64]:
    """Method 3, 2 or 1 of nifti1.h, in mm."""
    out = np.eye(4)
    if case.affine == "sform":
        out[:3] = np.array(case.srow, dtype=np.float32)
    elif case.affine == "qform":
        b, c, d = case.quaternion
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        turn = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ])  # fmt: skip
        qfac = -1.0 if case.pixdim[0] < 0 else 1.0
        out[:3, :3] = turn * (np.array(case.pixdim[1:4]) * (1, 1, qfac))
        out[:3, 3] = OFFSETS
    else:
        out[:3, :3] = np.diag(case.pixdim[1:4])
    out[:3] *= case.scale_mm
    return out


def every_case() -> Iterator[NiftiCase]:
    """The grid: types x byte orders x versions x scalings x forms, and what is odd."""
    plain = NiftiCase("plain")
    for version in (1, 2):
        for kind in TYPES:
            for order in ("<", ">"):
                for slope, intercept in ((1.0, 0.0), (0.0, 0.0), (2.0, 3.5), (-0.5, 10.0)):
                    for codes, affine in (((0, 1), "sform"), ((1, 0), "qform"), ((1, 1), "sform"), ((0, 0), "pixdim")):
                        ends = "le" if order == "<" else "be"
                        yield replace(
                            plain, name=f"nifti{version}-{kind}-{ends}-{slope:g}-{affine}-{sum(codes)}",
                            version=version, kind=kind, order=order, slope=slope, intercept=intercept, codes=codes,
                            affine=affine, zipped=kind in ("i2", "f4"))  # type: ignore[arg-type]  # fmt: skip
    yield from _odd(plain)


def _odd(plain: NiftiCase) -> Iterator[NiftiCase]:
    why = "nifti1.h: "

    def case(name: str, must: Literal["read", "refuse", "either"], said: str, **fields: Any) -> NiftiCase:
        return replace(plain, name=f"odd-nifti-{name}", must=must, why=why + said, **fields)

    yield case("slope_nan", "either", "scl_slope is no number", slope=float("nan"))
    yield case("slope_inf", "refuse", "scl_slope is no number", slope=float("inf"))
    yield case("intercept_nan", "refuse", "scl_inter is no number", slope=2.0, intercept=float("nan"))
    yield case("slope_zero_intercept", "read", "scl_slope 0: no scaling", slope=0.0, intercept=5.0)
    for name, units, scale in (("metre", 1, 1000.0), ("micron", 3, 1e-3), ("unknown", 0, 1.0), ("odd", 7, 1.0)):
        yield case(f"unit_{name}", "either" if name == "odd" else "read", "xyzt_units", units=units, scale_mm=scale)
    yield case("unit_seconds", "read", "xyzt_units: 2 + 8", units=10)
    yield case("offset_0", "either", "vox_offset of a single file is 352 at least", offset=0)
    yield case("offset_348", "either", "vox_offset of a single file is 352 at least", offset=348)
    yield case("offset_352_7", "either", "vox_offset is a whole number", offset=352.7)
    yield case("offset_far", "refuse", "vox_offset beyond the file", offset=100000)
    yield case("offset_negative", "refuse", "vox_offset", offset=-4)
    yield case("extension", "read", "extensions before vox_offset", extension=struct.pack("<2i", 32, 6) + bytes(24))
    yield case(
        "qfac_negative", "read", "pixdim[0]: qfac", codes=(1, 0), affine="qform", pixdim=(-1.0, *SPACING, 0, 0, 0, 0)
    )
    yield case(
        "qfac_zero", "read", "qfac 0 counts as 1", codes=(1, 0), affine="qform", pixdim=(0.0, *SPACING, 0, 0, 0, 0)
    )
    yield case("quaternion_long", "either", "a * a = 1 - b*b - c*c - d*d", codes=(1, 0), affine="qform",
               quaternion=(0.9, 0.7, 0.1))  # fmt: skip
    yield case("quaternion_half", "read", "a = 0", codes=(1, 0), affine="qform", quaternion=(0.0, 1.0, 0.0))
    yield case("pixdim_negative", "either", "pixdim is positive", codes=(1, 0), affine="qform",
               pixdim=(1.0, -1.5, 0.75, 3.0, 0, 0, 0, 0))  # fmt: skip
    yield case("pixdim_zero", "refuse", "pixdim is positive", codes=(0, 0), affine="pixdim",
               pixdim=(1.0, 0.0, 0.75, 3.0, 0, 0, 0, 0))  # fmt: skip
    yield case("sform_zero", "refuse", "srow makes no grid", srow=((0.0,) * 4,) * 3)
    yield case("sform_nan", "refuse", "srow is no number", srow=((float("nan"), 0.0, 0.0, 0.0), *SROW[1:]))
    yield case("sform_talairach", "read", "sform_code 3 and 4 place voxels, too", codes=(0, 3))
    yield case("sform_code_odd", "either", "sform_code is 0 to 5", codes=(0, 99))
    yield case("sform_left_handed", "read", "any srow", srow=((-1.5, 0, 0, 3.0), (0, 0.75, 0, 2.0), (0, 0, 3.0, 1.0)))
    yield case(
        "sheared", "read", "any srow", srow=((0.0, -0.75, 0.0, 40.0), (1.5, 0.0, 0.3, -12.0), (0.0, 0.1, 2.9, 5.5))
    )
    yield case("dim_4_of_1", "read", "a volume", dim=(4, 5, 4, 3, 1, 1, 1, 1))
    yield case("dim_5_of_1", "read", "a volume", dim=(5, 5, 4, 3, 1, 1, 1, 1))
    yield case("dim_7_of_1", "read", "a volume", dim=(7, 5, 4, 3, 1, 1, 1, 1))
    yield case("dim_4_of_2", "refuse", "two volumes", dim=(4, 5, 4, 3, 2, 1, 1, 1))
    yield case("vector", "refuse", "vectors", dim=(5, 5, 4, 3, 1, 3, 1, 1), intent=1007)
    yield case("dim_2", "refuse", "no volume", dim=(2, 5, 4, 1, 1, 1, 1, 1))
    yield case("dim_0", "refuse", "dim[0] is 1 to 7", dim=(0, 5, 4, 3, 1, 1, 1, 1))
    yield case("dim_9", "refuse", "dim[0] is 1 to 7", dim=(9, 5, 4, 3, 1, 1, 1, 1))
    yield case("dim_4_of_0", "either", "dim[4] 0", dim=(3, 5, 4, 3, 0, 0, 0, 0))
    yield case("bitpix_wrong", "either", "bitpix belongs to datatype", bitpix=32)
    yield case("type_binary", "refuse", "datatype 1", kind="u1", code=1, bitpix=1)
    yield case("type_rgb", "refuse", "datatype 128", kind="u1", code=128, bitpix=24)
    yield case("type_complex", "refuse", "datatype 32", kind="f8", code=32)
    yield case("type_unknown", "refuse", "datatype 0", code=0)
    yield case("pair_magic", "refuse", "ni1: voxels are in another file", magic=b"ni1\0")
    yield case("analyze", "refuse", "no magic: ANALYZE", magic=b"\0\0\0\0")
    yield case("cut", "refuse", "", cut=20)
    yield case("gzip_cut", "refuse", "", zipped=True, cut=20)
    yield case("gzip_checksum", "refuse", "RFC 1952: CRC32", zipped=True, cut=8)
    yield case("trailing", "read", "bytes behind the voxels", trailing=64)
    yield case("nan", "refuse", "voxels that are no number", kind="f4", nan=True)
    for version in (1, 2):
        yield case(f"both_forms_{version}", "read", "method 3 before method 2", codes=(1, 2), version=version)


def main() -> int:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    count = 0
    options.folder.mkdir(parents=True, exist_ok=True)
    with (options.folder / "cases.jsonl").open("w", encoding="utf-8") as file:
        for number, case in enumerate(every_case()):
            folder = options.folder / case.name
            folder.mkdir(parents=True)
            array, affine = write(case, folder, np.random.default_rng(number))
            if case.must != "refuse":
                np.savez(folder / "truth.npz", array=array, affine=affine)
            file.write(json.dumps({"name": case.name, "must": case.must, "slack": 0.0, "why": case.why}) + "\n")
            count += 1
    print(count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
