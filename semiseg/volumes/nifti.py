"""Writes NIfTI files, and reads volumes from single files of any supported format.

The formats themselves are in :mod:`semiseg.volumes.formats`. ``read_nifti`` and ``read_nifti_channels`` have kept
their names from the time when NIfTI was the only one.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.formats.nifti import is_single_nifti
from semiseg.volumes.formats.nifti_header import parse_header
from semiseg.volumes.formats.reader import StoredImage
from semiseg.volumes.formats.stream import open_unpacked, read_start
from semiseg.volumes.image_files import (
    format_stored_shape,
    read_image_file,
    require_finite,
    single_volume,
    split_channels,
)
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, same_grid

_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_ROUNDED = 0.5 * 10.0 ** (1 - int(np.finfo(np.float32).precision))
"""Largest relative rounding error of a label: half a unit in the last of the six decimal digits that float32 holds.
NIfTI-1 stores slope and intercept as float32, and many programs compute in float32 and print it with six digits."""
_LARGEST_LABEL = 255  # a tolerance relative to larger values would let interpolated ones pass


def is_nifti(path: Path) -> bool:
    """Return True if the file starts like a single-file NIfTI, gzipped or not; no content makes it raise an error."""
    return is_single_nifti(read_start(path))


def read_nifti(path: str | Path) -> Volume:
    """Read one 3D image from ``.nii`` or ``.nii.gz``, or from a file of another supported format.

    Integers stored without scaling keep their type; scaled values are returned as float32. A 4D file is accepted if it
    holds exactly one volume. The affine is in mm, whatever unit of length the header names; for a NIfTI file it is the
    one that nibabel chooses (sform, else qform, else the voxel sizes).

    Raises:
        VolumeError: The file is in no supported format, is damaged or truncated, does not hold exactly one real-valued
            volume, or has voxels that are NaN or infinite.

    Examples:
        >>> import semiseg
        >>> volume = semiseg.read_nifti("SCAN.nii.gz")
        >>> volume.shape, volume.axcodes
        ((22, 20, 13), 'RAS')
    """
    path = Path(path)
    return single_volume(path, read_image_file(path))


def read_nifti_channels(path: Path, names: Sequence[str]) -> dict[str, Volume]:
    """Read a file that holds one volume per channel: 4D (X, Y, Z, K) for K names, or 3D for one.

    Raises:
        VolumeError: The file cannot be read (see :func:`read_nifti`), or the number of volumes is not the number of
            names.
    """
    path = Path(path)
    return split_channels(path, read_image_file(path), names)


def read_labels(path: Path) -> Volume:
    """Read a label map as int32, whatever its stored type and scaling.

    Values that differ from an integer only by the rounding of float32 are rounded to it: 1.00000002, or 255 times a
    slope of 0.00392157. Interpolated values are refused.

    Raises:
        VolumeError: The file cannot be read (see :func:`read_nifti`), or a voxel is not an integer or does not fit 32
            bits.
    """
    path = Path(path)
    return to_label_map(path, read_image_file(path))


def to_label_map(path: Path, stored: StoredImage) -> Volume:
    """Convert a stored image to a label map; see :func:`read_labels`.

    Raises:
        VolumeError: The image has more than one volume, or a voxel that is not an integer or does not fit 32 bits.
    """
    if stored.array.shape[3] != 1:
        raise VolumeError(f"{path}: a label map is one volume; this file has shape {format_stored_shape(stored)}.")
    values = _whole(path, stored)
    low, high = values.min(), values.max()
    if low < -(2**31) or high >= 2**31:
        raise VolumeError(f"{path}: label values {low} to {high} do not fit 32 bits.")
    return Volume(values.astype(np.int32), stored.affine)


def write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64], *, like: Path | None = None) -> None:
    """Write a 3D or 4D array (X, Y, Z[, K]) atomically; compressed if the name ends with ``.gz``.

    bool becomes uint8. The affine, in mm, is written as sform, and as qform too if a rotation and voxel sizes can
    express it, which is impossible for a sheared affine. If ``like``, the NIfTI file that the array belongs to, has the
    same grid, its sform, qform and their codes are copied: then every viewer, whichever of the two it prefers, shows
    both files in the same place.

    Raises:
        VolumeError: NIfTI cannot hold the array, or the name does not end with ``.nii`` or ``.nii.gz``.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise VolumeError(f"{path}: the name of a NIfTI file ends with .nii or .nii.gz.")
    if array.ndim not in (3, 4) or array.size == 0:
        raise VolumeError(f"{path}: a NIfTI file holds (X, Y, Z) or (X, Y, Z, K); this array has shape {array.shape}.")
    data = _storable(path, array)
    kind = nib.Nifti1Image if max(data.shape) < 2**15 else nib.Nifti2Image
    image = kind(data, None, dtype=data.dtype)
    _place(image.header, np.asarray(affine, dtype=np.float64), None if like is None else _header_of(Path(like)))
    with atomic_file(path) as file:
        if path.name.endswith(".gz"):
            # Without a name and a time in the gzip header the same mask gives the same bytes.
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def write_segmentation(path: str | Path, segmentation: Segmentation, *, like: Path | None = None) -> None:
    """Write segments as uint8: exclusive ones as a label map (X, Y, Z), overlapping ones as masks (X, Y, Z, K).

    Examples:
        >>> import semiseg
        >>> prediction = semiseg.load_model("BUNDLE", threads=1).predict("SCAN.nii.gz")
        >>> semiseg.write_segmentation("labels.nii.gz", prediction.segmentation)
        >>> semiseg.read_nifti("labels.nii.gz").array.shape == prediction.array.shape
        True
    """
    array = segmentation.array
    if not segmentation.exclusive:
        array = np.moveaxis(array, 0, -1)
    write_nifti(Path(path), array.astype(np.uint8), segmentation.affine, like=like)


def _whole(path: Path, stored: StoredImage) -> NDArray[Any]:
    """Return the first volume (X, Y, Z) of labels with the header's scaling applied, as whole numbers of any type."""
    values = stored.array[..., 0]
    size = np.abs(values) if values.dtype.kind == "f" else None
    if stored.needs_scaling:
        product = values.astype(np.float64) * stored.slope
        # The rounding error depends on the sizes of both terms, however small their difference is.
        values, size = product + stored.intercept, np.abs(product) + abs(stored.intercept)
    require_finite(path, values)
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


def _storable(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # Few readers support NIfTI's 64-bit integers.
        if array.min() < -(2**31) or array.max() >= 2**31:
            raise VolumeError(f"{path}: integers beyond 32 bits are not written, since few programs read them back.")
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise VolumeError(f"{path}: an array of type {array.dtype} cannot be written as NIfTI.")
    return array


def _header_of(path: Path) -> Any | None:
    """Return the header of the scan that a mask belongs to; None if the scan is not a NIfTI file."""
    if not is_nifti(path):
        return None
    try:
        with open_unpacked(path) as file:
            return parse_header(path, file).fixed
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"{path}: cannot be read ({error}).") from error


def _place(header: Any, affine: NDArray[np.float64], like: Any | None) -> None:
    """Write ``affine`` into ``header``, with the fields of ``like`` if its grid is the same."""
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
    if not same_grid(like.get_best_affine(), affine, like.get_data_shape()):
        return False
    header["pixdim"][:4] = like["pixdim"][:4]
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        header[field] = like[field]
    for field in ("qoffset_x", "qoffset_y", "qoffset_z"):
        header[field] = like[field]
    return same_grid(header.get_best_affine(), affine, like.get_data_shape())
