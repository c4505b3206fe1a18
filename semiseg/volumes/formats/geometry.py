"""What every reader does with shape and affine, and the warnings that several formats share.

Codes of warnings that the readers of this folder make (DICOM's are in its own modules):

==========================  ==================================================================================
``no_orientation``          nothing in the file tells the patient's left from right; a convention was followed
``contradictory_orientation``  two statements about the orientation or place differ; one of them was followed
``contradictory_header``    other statements contradict each other or the file's length; one was followed
``implausible_size``        a scan of a person is not so large or so small; the unit of length may be wrong
``uncertain_scaling``       the header scales the values, and other programs do not
``declared_content``        the header says that the voxels are something else than grey values
==========================  ==================================================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.volume import affine_spacing, check_affine

_SMALLEST_MM, _LARGEST_MM = 1.0, 5000.0

LPS_TO_RAS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns DICOM's world coordinates (left, posterior, superior) into RAS+."""


def to_four_axes(path: Path, shape: list[int]) -> tuple[int, int, int, int]:
    """(X, Y, Z, K) of a declared shape; axes of length one behind the third are dropped.

    Raises:
        VolumeError: The image is empty, flat, or has more than four axes.
    """
    if any(n < 1 for n in shape):
        raise VolumeError(f"{path}: the header declares an empty image (shape {tuple(shape)}).")
    if len(shape) < 3:
        raise VolumeError(f"{path}: a 3D image is needed, but this file has shape {tuple(shape)}.")
    counts = [n for n in shape[3:] if n != 1]
    if len(counts) > 1:
        raise VolumeError(f"{path}: a 3D or 4D image is needed, but this file has shape {tuple(shape)}.")
    x, y, z = shape[:3]
    return (x, y, z, counts[0] if counts else 1)


def check_geometry(path: Path, affine: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[ScanWarning, ...]:
    """Refuse an affine that places voxels nowhere, and remark on a scan of a size that no person has.

    Args:
        path: The file.
        affine: (4, 4) to RAS+ mm.
        shape: (X, Y, Z, ...).

    Raises:
        VolumeError: see :func:`semiseg.volumes.volume.check_affine`.
    """
    try:
        check_affine(affine)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    spacing = affine_spacing(affine)
    longest = max(length * count for length, count in zip(spacing, shape, strict=False))
    if _SMALLEST_MM <= longest <= _LARGEST_MM:
        return ()
    sizes = " x ".join(f"{value:.3g}" for value in spacing)
    text = f"The header gives voxels of {sizes} mm and a scan of {longest:.3g} mm: its unit of length may be wrong."
    return (ScanWarning("implausible_size", text),)


def excess_data_warning(file: Path) -> ScanWarning:
    """The remark on a file that holds more than its header says."""
    text = f"{file.name} holds more bytes than the header declares; the rest was left out."
    return ScanWarning("contradictory_header", text)


def no_orientation_warning(why: str, followed: str) -> ScanWarning:
    """The remark on a file that does not tell left from right; two parts of a sentence."""
    return ScanWarning("no_orientation", f"The header says nothing about left and right ({why}); {followed}.")
