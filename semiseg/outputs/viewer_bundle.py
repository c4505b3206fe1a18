"""A case to look at, in one zip: the scan, its mask, the report, and pictures for where no viewer runs.

    report.json      the report
    scan.nii.gz      the first channel, as it was read
    mask.nii.gz      the answer `nifti`: a label map, or a volume for each region
    axial-01.png     and so on: slices with outlines, of all three planes

Members are stored as they are, so that a page can read them without a library.
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
    """Write the zip.

    Args:
        path: the file.
        segmentation: on the grid of ``image``.
        report: of it.
        image: the first channel of the scan.

    Raises:
        VolumeError: NIfTI cannot hold the scan.
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
    """The report of what :func:`write_viewer_bundle` wrote.

    Raises:
        VolumeError: the zip is not one of ours, or not whole.
    """
    try:
        return Report.model_validate_json(_member(path, REPORT))
    except ValueError as error:
        raise _stranger(path, error) from None


def read_segmentation(path: Path, segments: tuple[Segment, ...], *, exclusive: bool, scratch: Path) -> Segmentation:
    """The segmentation of what :func:`write_viewer_bundle` wrote, for other forms of the same answer.

    Args:
        path: the zip.
        segments: those of the model that made it.
        exclusive: whether they exclude each other.
        scratch: an existing folder for the mask, which is deleted again.

    Raises:
        VolumeError: the zip is not one of ours, or not whole.
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
    return VolumeError(f"{path} is no case of this server ({error}).")


def _compact(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Whole numbers in 16 bits where they fit: half as many bytes for the page to fetch."""
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and -(2**15) <= array.min() <= array.max() < 2**15:
        return array.astype(np.int16)
    return array
