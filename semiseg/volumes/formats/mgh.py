"""FreeSurfer's MGH and MGZ: a big-endian header of 284 bytes, followed by the voxels.

nibabel interprets the header (https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat).
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import check_geometry, no_orientation_warning, to_four_axes
from semiseg.volumes.formats.reader import ImageFile, Reader, StoredImage
from semiseg.volumes.formats.stream import open_unpacked, read_voxel_bytes, to_array

_ORIENTED_AT, _HEADER, _VOXELS_AT = 28, 90, 284  # bytes; the first is the offset of goodRASFlag
_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def read(file: ImageFile) -> StoredImage:
    """Read an MGH or MGZ file.

    Raises:
        VolumeError: The file is damaged or truncated, or its voxels are not grey values.
    """
    path = file.path
    try:
        with open_unpacked(path) as stream:
            block = stream.read(_VOXELS_AT)
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"{path}: cannot be read ({error}).") from error
    try:
        header = MGHHeader(block[:_HEADER], check=False)
        dims, code = [int(n) for n in header["dims"]], int(header["type"])
    except (MGHError, HeaderDataError, WrapStructError, ValueError) as error:
        raise VolumeError(f"{path}: the MGH header is damaged ({error}).") from error
    if code not in _TYPES:
        raise VolumeError(f"{path}: voxels of MGH's type {code} are not grey values; convert to integers or float32.")
    dtype = np.dtype(_TYPES[code])
    shape = to_four_axes(path, dims)
    oriented = int.from_bytes(block[_ORIENTED_AT : _ORIENTED_AT + 2], "big", signed=True) > 0
    if not oriented:
        # FreeSurfer's own default; nibabel's default has the second and third axes reversed.
        header["delta"], header["Pxyz_c"], header["Mdc"] = 1, 0, [[-1, 0, 0], [0, 0, -1], [0, 1, 0]]
    affine = np.array(header.get_affine(), dtype=np.float64)
    warnings = check_geometry(path, affine, shape)
    if not oriented:
        followed = "voxels of 1 mm in FreeSurfer's coronal orientation were assumed"
        warnings = (no_orientation_warning("its goodRASFlag is 0", followed), *warnings)
    data, _ = read_voxel_bytes(path, path, _VOXELS_AT, math.prod(shape) * dtype.itemsize)
    return StoredImage(to_array(data, dtype, shape), 1.0, 0.0, affine, warnings)


def _recognises(start: bytes) -> bool:
    # Version 1, then plausible sizes and a type: MGH has no magic number.
    if len(start) < _VOXELS_AT or start[:4] != b"\0\0\0\x01":
        return False
    fields = np.frombuffer(start[4:28], dtype=">i4")
    return bool((fields[:4] > 0).all()) and 0 <= int(fields[4]) <= 10


READER = Reader("MGH file", (".mgz", ".mgh"), _recognises, read, may_be_gzipped=True)
