"""Viewer bundles (output format `viewer-bundle`): a zip with the scan, its mask, the report, and pictures.

    report.json      the report
    scan.nii.gz      the first channel, as it was read
    mask.nii.gz      the result in the format `nifti`: a label map, or a volume for each region
    axial-01.png     and so on: slices with outlines, of all three planes; shown if no viewer is available

Members are stored uncompressed, so that a web page can read them without a library.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.outputs.overlay import render_slices
from semiseg.outputs.report import Report
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.nifti import read_nifti_channels, write_nifti, write_segmentation
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume

REPORT, SCAN, MASK = "report.json", "scan.nii.gz", "mask.nii.gz"


def write_viewer_bundle(path: Path, segmentation: Segmentation, report: Report, image: Volume) -> None:
    """Write a viewer bundle.

    Args:
        path: Path of the zip.
        segmentation: Segmentation on the grid of ``image``.
        report: Report of the segmentation.
        image: First channel of the scan.

    Raises:
        VolumeError: NIfTI cannot represent the scan.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as name, atomic_file(path) as file:
        folder = Path(name)
        write_nifti(folder / SCAN, _compact(image.array), image.affine)
        write_segmentation(folder / MASK, segmentation)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(REPORT), report.model_dump_json(indent=2))
            for member in (SCAN, MASK):
                archive.writestr(zipfile.ZipInfo(member), (folder / member).read_bytes())
            for title, png in render_slices(image, segmentation):
                archive.writestr(zipfile.ZipInfo(f"{title}.png"), png)


def read_report(path: Path) -> Report:
    """Read the report of a viewer bundle.

    Raises:
        VolumeError: The zip is not a viewer bundle, or is incomplete.
    """
    try:
        return Report.model_validate_json(_member(path, REPORT))
    except ValueError as error:
        raise _stranger(path, error) from None


def read_segmentation(path: Path, segments: tuple[Segment, ...], *, exclusive: bool, scratch: Path) -> Segmentation:
    """Read the segmentation of a viewer bundle, to write it in other output formats.

    Args:
        path: Path of the zip.
        segments: Segments of the model.
        exclusive: True if the segments exclude each other.
        scratch: Existing folder for a temporary copy of the mask.

    Raises:
        VolumeError: The zip is not a viewer bundle, or is incomplete.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        mask = Path(name) / MASK
        mask.write_bytes(_member(path, MASK))
        channels = read_nifti_channels(mask, ["labels"] if exclusive else [segment.name for segment in segments])
    arrays = [volume.array for volume in channels.values()]
    array = arrays[0].astype(np.uint8) if exclusive else np.stack(arrays).astype(bool)
    return Segmentation(segments, array, next(iter(channels.values())).affine)


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _stranger(path, error) from None


def _stranger(path: Path, error: Exception) -> VolumeError:
    return VolumeError(f"{path} is not a viewer bundle of semiseg ({error}).")


def _compact(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Convert integers to 16 bits if they fit, which halves the number of bytes that the page loads."""
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and -(2**15) <= array.min() <= array.max() < 2**15:
        return array.astype(np.int16)
    return array
