"""Checks of shape and affine that all readers share, and the warnings of several formats.

Codes of the warnings of these readers (the warnings about DICOM are in its own modules):

=============================  ==============================================================================
``no_orientation``             the file does not tell the patient's left from right; a convention was assumed
``contradictory_orientation``  two orientations or positions in the header differ; one of them was used
``contradictory_header``       other fields contradict each other or the length of the file; one was used
``implausible_size``           the scan is too large or too small for a person; its unit of length may be wrong
``uncertain_scaling``          the header scales the values, but other programs ignore the scaling
``declared_content``           the header declares that the voxels are not grey values
=============================  ==============================================================================
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
"""Matrix from DICOM's world coordinates (left, posterior, superior) to RAS+."""


def to_four_axes(path: Path, shape: list[int]) -> tuple[int, int, int, int]:
    """Convert a declared shape to (X, Y, Z, K); axes of length one after the third are dropped.

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
    """Refuse an invalid affine, and warn of a scan that is implausibly large or small.

    Args:
        path: Path of the file.
        affine: (4, 4) affine to RAS+ mm.
        shape: Shape (X, Y, Z, ...).

    Raises:
        VolumeError: The affine is not valid; see :func:`semiseg.volumes.volume.check_affine`.
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
    """Make the warning about a file that holds more bytes than its header declares."""
    text = f"{file.name} holds more bytes than the header declares; the rest was ignored."
    return ScanWarning("contradictory_header", text)


def no_orientation_warning(why: str, followed: str) -> ScanWarning:
    """Make the warning about a file that does not tell left from right, from two parts of its sentence."""
    return ScanWarning("no_orientation", f"The header does not define left and right ({why}); {followed}.")
