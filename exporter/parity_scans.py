"""Selection of the scans for parity tests and calibration: by default the run's own, never test scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ExportError
from semiseg.bundle.manifest import Manifest
from semiseg.dataset import find_split, load_dataset, read_channels, read_split
from semiseg.volumes.volume import affine_spacing
from trainer.checkpoints import RunFolder
from trainer.run_sources import read_sources

PARITY_SCANS = 8
CALIBRATION_SCANS = 32
IMAGE_PATTERN = "*-image.npy"  # in a preprocessing cache


@dataclass(frozen=True, eq=False)
class ParityScan:
    """A preprocessed scan.

    Attributes:
        array: Voxels (C, X, Y, Z).
        spacing: Voxel spacing in mm; None if a cache of an earlier version does not contain it.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class ParityScans:
    """Preprocessed scans for the tests of an export.

    Attributes:
        parity: Scans on whose windows a graph is compared with the network.
        calibration: Scans that calibrate int8 and on which the settings of the coarse pass are learned; they are other
            scans, if there are any.
        origin: A sentence that names the source of the scans.
    """

    parity: list[ParityScan]
    calibration: list[ParityScan]
    origin: str

    @classmethod
    def from_scans(cls, scans: list[ParityScan], origin: str) -> ParityScans:
        """Pick evenly spaced ``scans`` for the parity tests and leave the others for calibration."""
        pick = sorted({round(k) for k in np.linspace(0, len(scans) - 1, min(PARITY_SCANS, len(scans)))})
        rest = [scan for k, scan in enumerate(scans) if k not in pick]
        return cls([scans[k] for k in pick], rest or scans, origin)


def find_parity_scans(manifest: Manifest, run: Path, *, data: Path | None, cache: Path | None) -> ParityScans:
    """Find preprocessed scans that are not test scans.

    They are taken from the dataset ``data`` or from the cache ``cache``, if one is given. Otherwise they are the run's
    own scans: those that training preprocessed, or, if these are gone, those of its dataset, preprocessed again.

    Raises:
        ExportError: There are no such scans.
    """
    channels, count = len(manifest.channels), PARITY_SCANS + CALIBRATION_SCANS
    if data is not None:
        return ParityScans.from_scans(_preprocessed(data, manifest), f"Tested on scans of {data}.")
    if cache is not None:
        return ParityScans.from_scans(
            cached_scans(cache, count, channels), f"Tested on the preprocessed scans in {cache}."
        )
    sources = read_sources(run)
    if sources is not None and sources.cached:
        scans = _evenly(sorted(sources.cached), count)
        return ParityScans.from_scans(scans, f"Tested on the run's preprocessed scans in {sources.cache}.")
    own = RunFolder(run).cache
    if any(own.glob(IMAGE_PATTERN)):  # a run of an earlier version, which did not record its sources
        return ParityScans.from_scans(cached_scans(own, count, channels), f"Tested on the preprocessed scans in {own}.")
    if sources is not None and sources.data.is_dir():
        origin = f"Tested on scans of the run's dataset {sources.data}."
        return ParityScans.from_scans(_preprocessed(sources.data, manifest), origin)
    where = "" if sources is None else f" (they were in {sources.cache}, and its dataset in {sources.data})"
    raise ExportError(
        f"The scans that {run} was trained on are no longer there{where}, and without scans the graph cannot be "
        "tested: name the cache that training used with --cache, or the dataset with --data."
    )


def cached_scans(cache: Path, count: int, channels: int) -> list[ParityScan]:
    """Load up to ``count`` evenly spaced preprocessed scans (``channels``, X, Y, Z) of a cache.

    Runs may share a cache, so it may also hold scans with another number of channels.

    Raises:
        ExportError: There are no such scans.
    """
    found = sorted(cache.glob(IMAGE_PATTERN))
    files = [file for file in found if np.load(file, mmap_mode="r").shape[0] == channels]
    if not files:
        raise ExportError(
            f"{cache} holds no preprocessed scans to compare the graph with the network on; name the cache that "
            "training used with --cache, or the dataset with --data."
        )
    return _evenly(files, count)


def _evenly(files: Sequence[Path], count: int) -> list[ParityScan]:
    pick = np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)
    return [_cached_scan(files[i]) for i in sorted(set(pick.tolist()))]


def _cached_scan(file: Path) -> ParityScan:
    """Load a scan of a cache, with the spacing that is stored beside it."""
    beside = file.with_name(file.name.replace("-image.npy", "-spacing.npy"))
    spacing = None
    if beside.is_file():
        x, y, z = (float(side) for side in np.load(beside))
        spacing = (x, y, z)
    return ParityScan(np.asarray(np.load(file, mmap_mode="r")), spacing)


def _preprocessed(data: Path, manifest: Manifest) -> list[ParityScan]:
    """Preprocess the first scans of a dataset that are not test scans."""
    dataset = load_dataset(data)
    split = find_split(dataset, None)
    closed = () if split is None else read_split(dataset, split).test
    scans = []
    for case_id in [i for i in dataset.cases if i not in closed][: PARITY_SCANS + CALIBRATION_SCANS]:
        channels = read_channels(dataset.case(case_id), dataset.channels)
        prepared = manifest.preprocessing.apply(channels)
        scans.append(ParityScan(prepared.array, affine_spacing(prepared.affine)))
    return scans
