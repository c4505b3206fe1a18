"""NIfTI files in and out, without trusting their headers.

The header is nibabel's to interpret (which of sform and qform counts, byte order, scaling); the bytes are read here, so
that what a header declares is compared with what the file can hold before any memory is asked for. Files are told
apart by content: a gzip stream is recognised whatever the file is called.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, check_affine, same_grid

MAX_VOXEL_BYTES = 2**34
"""Refuse volumes of more than 16 GiB of voxels: no scan that a network segments is near that."""

_LOG = logging.getLogger(__name__)
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_RATIO = 1032  # the most that deflate can expand (zlib's own figure)
_MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_ROUNDED = 0.5 * 10.0 ** (1 - int(np.finfo(np.float32).precision))
"""What rounding may do to a label, as a share of it: half a unit in the last of the six decimal digits that float32
holds. NIfTI-1 stores slope and intercept as float32, many programs compute in it, and print it with six digits."""
_LARGEST_LABEL = 255  # a share of larger values would let interpolated ones pass


@dataclass(frozen=True, eq=False)
class _Stored:
    """Voxels as they lie in the file, (X, Y, Z, K), with the header's scaling not yet applied."""

    array: NDArray[Any]
    slope: float
    intercept: float
    affine: NDArray[np.float64]

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def is_nifti(path: Path) -> bool:
    """Whether the file's first bytes are those of a single-file NIfTI, gzipped or not; never raises on content."""
    try:
        with _opened(path) as file:
            start = file.read(348)
    except (OSError, EOFError, zlib.error):
        return False
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"


def is_gzip(path: Path) -> bool:
    """Whether the file's first bytes are those of a gzip stream."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


def read_nifti(path: str | Path) -> Volume:
    """Read one 3D image from ``.nii`` or ``.nii.gz``.

    Integers stored without scaling keep their type; scaled values come as float32. A 4D file is accepted when it holds
    exactly one volume. The affine is the one nibabel chooses (sform, else qform, else the voxel sizes), in mm whatever
    length unit the header names.

    Raises:
        VolumeError: not NIfTI, damaged, truncated, not one real-valued volume, or with voxels that are NaN or infinite.
    """
    path = Path(path)
    stored = _read(path)
    count = stored.array.shape[3]
    if count != 1:
        raise VolumeError(f"{path}: one volume is needed, but the file holds {count} (shape {_shape_text(stored)}).")
    return Volume(_finite(path, _scaled(stored, 0)), stored.affine)


def read_nifti_channels(path: Path, names: Sequence[str]) -> dict[str, Volume]:
    """Read a file that holds one volume per channel: 4D (X, Y, Z, K) for K names, or 3D for one.

    Raises:
        VolumeError: as :func:`read_nifti`, or the number of volumes is not the number of names.
    """
    path = Path(path)
    stored = _read(path)
    count = stored.array.shape[3]
    if count != len(names):
        raise VolumeError(
            f"{path}: the model needs {len(names)} channel(s) ({', '.join(names)}), but the file holds {count} "
            f"(shape {_shape_text(stored)})."
        )
    return {name: Volume(_finite(path, _scaled(stored, k)), stored.affine) for k, name in enumerate(names)}


def read_labels(path: Path) -> Volume:
    """Read a label map as int32, whatever type holds it, scaled or not.

    A value that is an integer but for the rounding of float32 is that integer: 1.00000002, or 255 times a slope of
    0.00392157. Interpolated values are refused.

    Raises:
        VolumeError: as :func:`read_nifti`, or a voxel is not an integer or does not fit 32 bits.
    """
    path = Path(path)
    stored = _read(path)
    if stored.array.shape[3] != 1:
        raise VolumeError(f"{path}: a label map is one volume; this file has shape {_shape_text(stored)}.")
    values = _whole(path, stored)
    low, high = values.min(), values.max()
    if low < -(2**31) or high >= 2**31:
        raise VolumeError(f"{path}: label values {low} to {high} do not fit 32 bits.")
    return Volume(values.astype(np.int32), stored.affine)


def write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64], *, like: Path | None = None) -> None:
    """Write a 3D or 4D array (X, Y, Z[, K]) atomically; ``.gz`` at the end of the name compresses.

    bool becomes uint8. sform holds the affine, in mm; qform too if a rotation and voxel sizes can express it (a sheared
    affine cannot). With ``like``, the NIfTI file that the array belongs to, its sform, qform and their codes are
    repeated where they mean the same grid: then every viewer, whichever of the two it prefers, puts both in one place.

    Raises:
        VolumeError: an array NIfTI cannot hold, or a name that is not ``.nii`` or ``.nii.gz``.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise VolumeError(f"{path}: a NIfTI file is named .nii or .nii.gz.")
    if array.ndim not in (3, 4) or array.size == 0:
        raise VolumeError(f"{path}: a NIfTI file holds (X, Y, Z) or (X, Y, Z, K); this array has shape {array.shape}.")
    data = _storable(path, array)
    kind = nib.Nifti1Image if max(data.shape) < 2**15 else nib.Nifti2Image
    image = kind(data, None, dtype=data.dtype)
    _place(image.header, np.asarray(affine, dtype=np.float64), None if like is None else _header_of(Path(like)))
    with atomic_file(path) as file:
        if path.name.endswith(".gz"):
            # No name and no time inside: the same mask gives the same bytes.
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def write_segmentation(path: str | Path, segmentation: Segmentation, *, like: Path | None = None) -> None:
    """Write segments as uint8: exclusive ones as a label map (X, Y, Z), overlapping ones as masks (X, Y, Z, K)."""
    array = segmentation.array
    if not segmentation.exclusive:
        array = np.moveaxis(array, 0, -1)
    write_nifti(Path(path), array.astype(np.uint8), segmentation.affine, like=like)


def _read(path: Path) -> _Stored:
    """Header, checks, bytes: the steps that all readers share."""
    try:
        with _opened(path) as file:
            header = _header(path, file)
            shape = _voxel_shape(path, header)
            dtype = _voxel_type(path, header)
            affine = _affine(path, header)
            slope, intercept = _scaling(path, header)
            data = _voxel_bytes(path, file, math.prod(shape) * dtype.itemsize, int(header["vox_offset"]))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(f"{path}: the gzip stream is damaged or cut short ({error}).") from error
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F")
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return _Stored(array, slope, intercept, affine)


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip(path) else path.open("rb")


def _header(path: Path, file: IO[bytes]) -> Any:
    """Parse the header and leave ``file`` right behind it."""
    start = file.read(4)
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    kind = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise VolumeError(f"{path}: not a NIfTI file (its first bytes are not a NIfTI header).")
    block = start + file.read(max(sizes & {348, 540}) - 4)
    try:
        header = kind(block, check=False)
        magic = header["magic"].item()[:3]
        if magic in (b"ni1", b"ni2"):
            raise VolumeError(f"{path}: this is one half of a .hdr/.img pair; convert it to a single .nii file.")
        if magic not in (b"n+1", b"n+2"):
            raise VolumeError(f"{path}: not a NIfTI file (an ANALYZE header, or one without NIfTI's mark).")
        if not np.isfinite(header["vox_offset"]):
            raise VolumeError(f"{path}: the header's vox_offset is not a number, so the file is damaged.")
        header.check_fix(logger=_LOG, error_level=40)
    except (HeaderDataError, WrapStructError, ValueError, KeyError) as error:
        raise VolumeError(f"{path}: the NIfTI header is damaged ({error}).") from error
    return header


def _voxel_shape(path: Path, header: Any) -> tuple[int, int, int, int]:
    """(X, Y, Z, K); axes of length one behind the third are dropped."""
    shape = [int(n) for n in header.get_data_shape()]
    if any(n < 1 for n in shape):
        raise VolumeError(f"{path}: the header declares an empty image (shape {tuple(shape)}).")
    if len(shape) < 3:
        raise VolumeError(f"{path}: a 3D image is needed, but this file has shape {tuple(shape)}.")
    counts = [n for n in shape[3:] if n != 1]
    if len(counts) > 1:
        raise VolumeError(f"{path}: a 3D or 4D image is needed, but this file has shape {tuple(shape)}.")
    x, y, z = shape[:3]
    return (x, y, z, counts[0] if counts else 1)


def _voxel_type(path: Path, header: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(f"{path}: voxels of type {dtype} are no grey values; convert to integers or float32.")
    return dtype


def _affine(path: Path, header: Any) -> NDArray[np.float64]:
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(f"{path}: sform and qform place the voxels nowhere ({error}).") from error
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError as error:
        raise VolumeError(f"{path}: the header names a unit of length that NIfTI does not know.") from error
    affine[:3] *= _MM_PER_UNIT[unit]
    try:
        check_affine(affine)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    return affine


def _scaling(path: Path, header: Any) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise VolumeError(f"{path}: the header's scaling is not a number ({error}).") from error
    return (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def _voxel_bytes(path: Path, file: IO[bytes], wanted: int, offset: int) -> bytearray:
    """Read exactly ``wanted`` bytes from ``offset``; memory grows with what is there, never with what is declared."""
    if wanted > MAX_VOXEL_BYTES:
        raise VolumeError(f"{path}: the header declares {wanted} bytes of voxels; the limit is {MAX_VOXEL_BYTES}.")
    size = path.stat().st_size
    most = size * _DEFLATE_RATIO if is_gzip(path) else size
    if offset + wanted > most:
        raise VolumeError(
            f"{path}: the header declares {offset + wanted} bytes, but a file of {size} bytes cannot hold them; "
            f"it is cut short or damaged."
        )
    file.seek(offset)
    data = bytearray()
    while len(data) < wanted:
        chunk = file.read(min(wanted - len(data), 2**24))
        if not chunk:
            raise VolumeError(f"{path}: the file ends after {len(data)} of {wanted} bytes of voxels; it is cut short.")
        data += chunk
    file.read(1)  # lets gzip reach the end and compare its checksum
    return data


def _scaled(stored: _Stored, index: int) -> NDArray[Any]:
    """Volume ``index`` (X, Y, Z) with the header's scaling applied, as float32 if there is any."""
    raw = stored.array[..., index]
    if not stored.scaled:
        return raw
    out = np.empty(raw.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted and refused by _finite
        for z in range(raw.shape[2]):  # slice by slice: float64 only for one slice at a time
            out[..., z] = raw[..., z].astype(np.float64) * stored.slope + stored.intercept
    return out


def _whole(path: Path, stored: _Stored) -> NDArray[Any]:
    """The first volume (X, Y, Z) of labels with the header's scaling applied, as integers of whatever type."""
    values = stored.array[..., 0]
    size = np.abs(values) if values.dtype.kind == "f" else None
    if stored.scaled:
        product = values.astype(np.float64) * stored.slope
        # What is subtracted brings its rounding along, however small the difference is.
        values, size = product + stored.intercept, np.abs(product) + abs(stored.intercept)
    _finite(path, values)
    if size is None:
        return values
    whole: NDArray[Any] = np.rint(values)
    broken = np.abs(values - whole) > _ROUNDED * np.clip(size, 1, _LARGEST_LABEL)
    if broken.any():
        example = float(values[broken][0])
        raise VolumeError(
            f"{path}: labels are integers, but {int(broken.sum())} voxel(s) are not (for example {example:g}); "
            f"was the label map resampled with interpolation?"
        )
    return whole


def _finite(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f":
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise VolumeError(f"{path}: {bad} of {values.size} voxels are NaN or infinite; replace them first.")
    return values


def _shape_text(stored: _Stored) -> str:
    return " x ".join(str(n) for n in stored.array.shape)


def _storable(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # Few readers know NIfTI's 64-bit integers.
        if array.min() < -(2**31) or array.max() >= 2**31:
            raise VolumeError(f"{path}: integers beyond 32 bits are not written, since few programs read them back.")
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise VolumeError(f"{path}: an array of type {array.dtype} cannot be written as NIfTI.")
    return array


def _header_of(path: Path) -> Any:
    try:
        with _opened(path) as file:
            return _header(path, file)
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"{path}: cannot be read ({error}).") from error


def _place(header: Any, affine: NDArray[np.float64], like: Any | None) -> None:
    """Write ``affine`` into ``header``: as ``like`` says it where that is the same grid, else as sform and qform."""
    header.set_xyzt_units("mm")
    if like is not None and _repeat(header, affine, like):
        return
    header.set_sform(affine, code=_SCANNER)
    header.set_qform(affine, code=_SCANNER, strip_shears=True)  # also sets the voxel sizes
    if not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-3):
        header["qform_code"] = 0


def _repeat(header: Any, affine: NDArray[np.float64], like: Any) -> bool:
    if like.get_xyzt_units()[0] not in ("mm", "unknown"):
        return False
    if tuple(like.get_data_shape()[:3]) != tuple(header.get_data_shape()[:3]):
        return False
    if not same_grid(like.get_best_affine(), affine):
        return False
    header["pixdim"][:4] = like["pixdim"][:4]
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        header[field] = like[field]
    for field in ("qoffset_x", "qoffset_y", "qoffset_z"):
        header[field] = like[field]
    return same_grid(header.get_best_affine(), affine)
