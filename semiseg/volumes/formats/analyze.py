"""Analyze 7.5 pairs (``.hdr`` and ``.img`` without NIfTI's magic).

An Analyze header does not define which side is left: programs followed two opposite conventions, and its field
``orient`` is 0 in nearly all files, whether set on purpose or not. A pair is therefore read only if SPM stored the
matrix ``mat`` beside it (``.mat``), which maps voxel indices, counted from 1, to RAS+ mm. SPM's other matrix, ``M``,
does not define the flip.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import check_geometry, to_four_axes
from semiseg.volumes.formats.nifti import image_of_pair, parts_of_pair
from semiseg.volumes.formats.reader import ImageFile, Reader, StoredImage
from semiseg.volumes.formats.spm_matrix import parse_spm_matrix
from semiseg.volumes.formats.stream import open_unpacked, read_voxel_bytes, to_array

_HEADER = 348
_TYPES = (1, 2, 4, 8, 16, 32, 64, 128, 130, 132, 136)  # Analyze's types, and those that SPM added
_MAX_MATRIX_BYTES = 2**16


def read(file: ImageFile) -> StoredImage:
    """Read a pair with a matrix that SPM stored.

    Raises:
        VolumeError: The pair has no orientation, or is damaged or truncated.
    """
    path = file.path
    if file.name.lower().endswith((".nii", ".nii.gz")):
        raise VolumeError(f'{path}: this is a broken NIfTI file (its magic, "n+1" at byte 344, is missing).')
    try:
        with open_unpacked(path) as stream:
            block = stream.read(_HEADER)
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"{path}: cannot be read ({error}).") from error
    order = "<" if block[:4] == _HEADER.to_bytes(4, "little") else ">"
    try:
        header = nib.Spm99AnalyzeHeader(block, endianness=order, check=False)
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, WrapStructError, ValueError, KeyError) as error:
        raise VolumeError(f"{path}: the Analyze header is damaged ({error}).") from error
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise VolumeError(f"{path}: the Analyze header gives {count} dimensions (dim[0]).")
    shape = to_four_axes(path, [int(n) for n in header["dim"][1 : count + 1]])
    if dtype.kind not in "iuf":
        raise VolumeError(f"{path}: voxels of type {dtype} are not grey values; convert to integers or float32.")
    affine = _matrix(file)
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < 0:
        raise VolumeError(f"{path}: the header's vox_offset is {offset:g}, so the file is damaged.")
    data, _ = read_voxel_bytes(path, image_of_pair(file), int(offset), math.prod(shape) * dtype.itemsize)
    slope = float(header["scl_slope"])  # SPM's field funused1
    warnings = check_geometry(path, affine, shape)
    scale = slope if np.isfinite(slope) and slope != 0 else 1.0
    return StoredImage(to_array(data, dtype, shape), scale, 0.0, affine, warnings)


def _matrix(file: ImageFile) -> NDArray[np.float64]:
    """Return the affine from voxel indices, counted from 0, to RAS+ mm.

    Raises:
        VolumeError: There is no matrix, or none that defines which side is left.
    """
    refusal = VolumeError(
        f"{file.path}: this is an Analyze pair without orientation: nothing defines which side is left. Convert it to "
        "NIfTI with a program that knows its orientation."
    )
    try:
        matrix = file.find_data_file(_matrix_name(file))
    except VolumeError:
        raise refusal from None
    if matrix.stat().st_size > _MAX_MATRIX_BYTES:
        raise refusal
    try:
        found = parse_spm_matrix(matrix.read_bytes())
    except OSError:
        raise refusal from None
    if found is None:
        raise refusal
    from_one = np.eye(4)
    from_one[:3, 3] = 1
    return found @ from_one


def _parts(file: ImageFile) -> dict[str, Path]:
    return {**parts_of_pair(file), "scan.mat": file.find_data_file(_matrix_name(file))}


def _matrix_name(file: ImageFile) -> str:
    return f"{Path(file.name.removesuffix('.gz')).stem}.mat"


def _recognises(start: bytes) -> bool:
    if len(start) < _HEADER or start[344:347] in (b"n+1", b"ni1"):
        return False
    orders = [order for order in "<>" if struct.unpack_from(f"{order}i", start)[0] == _HEADER]
    if not orders:
        return False
    # Other files may begin with these four bytes, too: dimensions and type have to be plausible.
    count, *sizes = struct.unpack_from(f"{orders[0]}8h", start, 40)
    (kind,) = struct.unpack_from(f"{orders[0]}h", start, 70)
    return 1 <= count <= 7 and all(size > 0 for size in sizes[:count]) and kind in _TYPES


READER = Reader("Analyze file", (".hdr",), _recognises, read, True, _parts)
