"""Segmentations as NIfTI, on the grid and in the coordinate system of the scan's own file."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from semiseg.volumes.formats.stream import is_gzip
from semiseg.volumes.nifti import is_nifti, write_nifti, write_segmentation
from semiseg.volumes.segmentation import Segmentation


def write_nifti_result(path: Path, segmentation: Segmentation, source: Path | None) -> None:
    """Write a segmentation as NIfTI.

    Args:
        path: Path of the file; its suffix selects compression.
        segmentation: Segmentation to write.
        source: File of the scan. If it is a NIfTI file, the result repeats its qform and sform, and a fourth axis of
            length one, so that shape and affine are exactly the source's.
    """
    like = source if source is not None and source.is_file() and is_nifti(source) else None
    if like is not None and segmentation.exclusive and _has_fourth_axis(like):
        write_nifti(path, segmentation.array.astype(np.uint8)[..., np.newaxis], segmentation.affine, like=like)
    else:
        write_segmentation(path, segmentation, like=like)


def _has_fourth_axis(path: Path) -> bool:
    """Return True if a NIfTI file has a fourth axis: shape (X, Y, Z, 1)."""
    with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    header_class = nib.Nifti2Header if start[4:8] == b"n+2\0" else nib.Nifti1Header
    return len(header_class(start[: header_class.sizeof_hdr], check=False).get_data_shape()) == 4
