"""What the product reads: every series and NIfTI file of some files, or the sentence with which it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from docs.readers.grids import Grid
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import numbers, read_dicom, text
from semiseg.volumes.dicom_geometry import stack_affine, stack_planes
from semiseg.volumes.dicom_index import index_files
from semiseg.volumes.dicom_pixels import decode_slices
from semiseg.volumes.dicom_series import DicomSeries, read_candidate
from semiseg.volumes.image_files import read_image_file, single_volume
from semiseg.volumes.nifti import is_nifti
from semiseg.volumes.series_rules import SeriesCandidate, group_by_series

FIRST_IMAGES_LABEL = "(first image of each place)"


@dataclass(frozen=True, eq=False)
class ReadResult:
    """One series or NIfTI file, as the product reads it.

    Attributes:
        paths: the files of its images.
        label: short description, without anything of a patient.
        slices: slices of its images, those included that have no place.
        syntax: transfer syntax UID of the first file; "" for NIfTI.
        sentence: reason for the refusal, or the correction.
        grid: the volume; None where it is refused.
        uncorrected: the slices as they lie in the files, where the product corrected how they lie; else the volume.
        fault: an exception that is no refusal.
    """

    paths: tuple[Path, ...]
    label: str
    slices: int
    syntax: str
    sentence: str
    grid: Grid | None = None
    uncorrected: Grid | None = None
    fault: str = ""

    @property
    def corrected(self) -> bool:
        """Whether the volume is not the stack of the slices as they are."""
        return self.grid is not self.uncorrected


@dataclass
class ProductReader:
    """The product in a process of its own, which a decoder may end without ending the comparison."""

    _pool: ProcessPoolExecutor = field(default_factory=lambda: ProcessPoolExecutor(1))

    def read_all(self, files: Sequence[Path], *, firsts: bool = False) -> Iterator[ReadResult]:
        """Read each NIfTI file and each series among some files.

        With ``firsts``, a series that is refused and has several images of each place is read again, the first of each.
        """
        niftis = [path for path in files if is_nifti(path)]
        for path in niftis:
            yield self._run(read_nifti, path, (path,), "NIfTI")
        known = set(niftis)
        objects, left_out = index_files([path for path in files if path not in known])
        for one in left_out:
            if one.damaged:
                yield ReadResult((one.path,), "damaged", 0, "", one.sentence)
        for found in group_by_series(objects):
            if found.images:
                paths = tuple(one.path for one in found.images)
                read = self._run(read_series, found, paths, f"{found.modality} {found.description}".strip())
                yield read
                together = len({path.parent for path in paths}) == 1
                first = first_of_each_place(found) if firsts and together else []
                if read.grid is None and 1 < len(first) < len(paths):
                    yield from (
                        replace(part, label=f"{part.label} {FIRST_IMAGES_LABEL}".strip())
                        for part in self.read_all(first)
                    )

    def _run(self, work: Callable[[Any], ReadResult], what: object, paths: tuple[Path, ...], label: str) -> ReadResult:
        try:
            return self._pool.submit(work, what).result()
        except BrokenProcessPool:
            self._pool = ProcessPoolExecutor(1)
            return ReadResult(paths, label, len(paths), "", "", fault="a decoder ended the process")


def first_of_each_place(found: SeriesCandidate) -> list[Path]:
    """Of a series of several volumes the single-slice files with the lowest Instance Number at each place."""
    placed = [(one.path, one.planes[0].position) for one in found.images if len(one.planes) == 1]
    first: dict[tuple[float, ...], tuple[float, Path]] = {}
    for path, position in placed:
        header = read_dicom(path, pixels=False, tags=["InstanceNumber"])
        number = (numbers(header, "InstanceNumber", path) or [0.0])[0]
        place = tuple(round(value, 2) for value in position)
        first[place] = min(first.get(place, (number, path)), (number, path))
    return sorted(path for _, path in first.values())


def read_series(found: SeriesCandidate) -> ReadResult:
    """Read one series."""
    paths = tuple(one.path for one in found.images)
    label = f"{found.modality} {found.description}".strip()
    syntax = _syntax(paths[0])
    try:
        series = read_candidate(found)
    except VolumeError as error:
        return ReadResult(paths, label, found.slices, syntax, str(error).removeprefix(f"{found.name}: "))
    except Exception as error:  # noqa: BLE001 - whatever is no refusal is a finding
        return ReadResult(paths, label, found.slices, syntax, "", fault=f"{type(error).__name__}: {error}")
    volume = Grid(series.volume.array, series.volume.affine)
    before = volume if series.grid is None else _as_it_lies(series)
    said = " ".join(remark.text for remark in series.warnings)
    return ReadResult(paths, label, found.slices, syntax, said, volume, before)


def read_nifti(path: Path) -> ReadResult:
    """Read one NIfTI file."""
    try:
        stored = read_image_file(path)
        volume = single_volume(path, stored)
    except VolumeError as error:
        return ReadResult((path,), "NIfTI", 0, "", str(error).removeprefix(f"{path}: "))
    except Exception as error:  # noqa: BLE001
        return ReadResult((path,), "NIfTI", 0, "", "", fault=f"{type(error).__name__}: {error}")
    said = " ".join(remark.text for remark in stored.warnings)
    grid = Grid(volume.array, volume.affine)
    return ReadResult((path,), "NIfTI", volume.shape[2], "", said, grid, grid)


def _as_it_lies(series: DicomSeries) -> Grid:
    slices = list(series.slices)
    affine: NDArray[np.float64] = stack_affine(stack_planes([one.plane for one in slices]))
    return Grid(decode_slices(slices)[0], affine)


def _syntax(path: Path) -> str:
    try:
        return text(read_dicom(path, pixels=False, tags=["SOPClassUID"]).file_meta, "TransferSyntaxUID", path)
    except VolumeError:
        return ""
