"""Distances between unlabelled scans, computed from their images alone.

Each scan is described by three blocks of numbers: quantiles of its normalised values, its extent (or the stretch of an
affine registration), and a thumbnail that shows the positions of structures. Each block is divided by its spread over
the scans, so that its weight does not depend on its units and length. Distances are Euclidean distances between the
principal components of all blocks together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from semiseg.bundle.preprocessing import Intensity, PreprocessedScan, Preprocessing
from semiseg.dataset import Dataset, read_channels
from semiseg.errors import InputError, SemisegError
from semiseg.volumes.volume import affine_spacing
from trainer.registration import affine_transform, log_strain, prepare_scan, warp, working_spacing

CELLS = 12  # cells of a thumbnail along each axis
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
NEIGHBOURHOOD = 3.0  # standard deviation, in halves of a cell, of the Gaussian for local means and deviations
NEGLIGIBLE = 0.1  # a block whose numbers vary less than this over the scans is not scaled up to the others' weight
KEPT_VARIANCE = 0.95  # share of the variance that the kept principal components explain

Blocks = Mapping[str, NDArray[np.float64]]
Progress = Callable[[int, int], None]


def image_distances(dataset: Dataset, ids: Sequence[str], progress: Progress | None = None) -> NDArray[np.float64]:
    """Compute distances (scans, scans) between scans as they are stored, in units of the median distance.

    Args:
        dataset: Dataset of the scans; label files are not opened.
        ids: Names of the scans.
        progress: Called with the number of scans read so far and the total number.

    Raises:
        InputError: A scan cannot be read; the message names it.
    """
    found: list[Blocks] = []
    for done, case_id in enumerate(ids, start=1):
        found.append(_blocks(_prepared(dataset, case_id)))
        if progress is not None:
            progress(done, len(ids))
    return pairwise_distances(found)


def registered_distances(
    dataset: Dataset, ids: Sequence[str], pivot: str, progress: Progress | None = None
) -> NDArray[np.float64]:
    """Compute distances (scans, scans) between scans after affine registration onto one of them.

    The blocks are the quantiles, the stretch of the transform, and a thumbnail of the first channel on the grid of
    ``pivot``. Each scan is registered once; registering every pair would take ``len(ids)`` times as long.

    Args:
        dataset: Dataset of the scans; label files are not opened.
        ids: Names of the scans.
        pivot: Name of the scan onto which all others are registered, such as the most typical one.
        progress: Called with the number of scans registered so far and the total number.

    Raises:
        InputError: A scan cannot be read; the message names it.
    """
    central = _prepared(dataset, pivot)
    side = working_spacing([_shape(central)], [_spacing(central)])
    fixed = prepare_scan(central.array[0], _spacing(central), side)
    found: list[Blocks] = []
    for done, case_id in enumerate(ids, start=1):
        prepared = _prepared(dataset, case_id)
        moving = prepare_scan(prepared.array[0], _spacing(prepared), side)
        transform = affine_transform(fixed, moving)
        thumbnail = cell_means(warp(moving.local, fixed.work, transform), CELLS)
        blocks = {
            "values": _quantiles(_fine(prepared)),
            "stretch": log_strain(transform),
            "thumbnail": thumbnail.ravel(),
        }
        found.append(blocks)
        if progress is not None:
            progress(done, len(ids))
    return pairwise_distances(found)


def pairwise_distances(scans: Sequence[Blocks]) -> NDArray[np.float64]:
    """Compute distances (scans, scans) between scans from their blocks of numbers, in units of the median distance.

    Numbers are in standard deviations of a scan's values or are logarithms of lengths, so they are of order one. A
    block whose numbers vary by less than :data:`NEGLIGIBLE` is not scaled up to the weight of the others, because
    differences of a tenth of a standard deviation or a tenth of a length are hardly meaningful. All distances are zero
    if all scans are equal.
    """
    weighted = []
    for name in scans[0]:
        block = np.stack([blocks[name] for blocks in scans])
        block = block - block.mean(axis=0)
        spread = float(np.sqrt(np.mean(np.sum(block**2, axis=1))))
        weighted.append(block / max(spread, NEGLIGIBLE * np.sqrt(block.shape[1])))
    vectors, lengths, _ = np.linalg.svd(np.concatenate(weighted, axis=1), full_matrices=False)
    shares = np.cumsum(lengths**2) / max(float(np.sum(lengths**2)), 1e-12)
    kept = int(np.searchsorted(shares, KEPT_VARIANCE)) + 1
    at = (vectors * lengths)[:, :kept]
    apart = np.sqrt(np.maximum(((at[:, None] - at[None]) ** 2).sum(axis=2), 0.0))
    pairs = apart[np.triu_indices(len(scans), k=1)]
    unit = float(np.median(pairs)) if pairs.size else 0.0
    unit = unit if unit > 0 else float(pairs.max(initial=0.0))
    return apart / unit if unit > 0 else apart


def cell_means(array: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Return the means (count, count, count) of a volume (X, Y, Z) in ``count`` equal parts of every axis.

    A voxel on a border counts for both sides in proportion, so that scans of any shape have comparable cells.
    """
    out = np.asarray(array, dtype=np.float64) if array.size < 1 << 24 else array
    for axis in range(3):
        out = np.moveaxis(np.tensordot(_shares(out.shape[axis], count, out.dtype), out, axes=(1, axis)), 0, axis)
    return np.asarray(out, dtype=np.float64)


def _prepared(dataset: Dataset, case_id: str) -> PreprocessedScan:
    """Read a scan in RAS orientation with its own voxel spacing, cropped to non-zero values and normalised."""
    values = Intensity(percentiles=(0.5, 99.5))
    preprocessing = Preprocessing(orientation="RAS", intensity=(values,) * len(dataset.channels), crop="nonzero")
    try:
        return preprocessing.apply(read_channels(dataset.case(case_id), dataset.channels))
    except SemisegError as error:
        raise InputError(f"Scan {case_id}: {error}") from error


def _blocks(prepared: PreprocessedScan) -> Blocks:
    extent = np.log([n * mm for n, mm in zip(_shape(prepared), _spacing(prepared), strict=True)])
    fine = _fine(prepared)
    thumbnail = np.stack([_thumbnail(channel) for channel in fine])
    return {"values": _quantiles(fine), "extent": extent, "thumbnail": thumbnail.ravel()}


def _fine(prepared: PreprocessedScan) -> list[NDArray[np.float64]]:
    """Average each channel in twice as many cells per axis as a thumbnail has; the result is independent of spacing."""
    return [cell_means(channel, 2 * CELLS) for channel in prepared.array]


def _quantiles(fine: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the quantiles of each channel's values, one channel after the other."""
    return np.concatenate([np.quantile(channel, QUANTILES) for channel in fine])


def _thumbnail(fine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalise a channel locally, which removes bias fields and contrast scales, and average it to (12, 12, 12)."""
    away = fine - ndimage.gaussian_filter(fine, NEIGHBOURHOOD, mode="nearest")
    # The floor, a share of the whole scan's standard deviation, keeps noise in air from being amplified.
    floor = 0.1 * float(fine.std()) + 1e-6
    deviation = np.sqrt(ndimage.gaussian_filter(away**2, NEIGHBOURHOOD, mode="nearest") + floor**2)
    return cell_means(away / deviation, CELLS)


def _shares(voxels: int, count: int, kind: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Return the shares (count, voxels) of each of ``count`` cells that each voxel fills; rows sum to one."""
    starts = np.arange(count)[:, None] * (voxels / count)
    ends = starts + voxels / count
    place = np.arange(voxels)[None]
    covered = np.clip(np.minimum(ends, place + 1) - np.maximum(starts, place), 0.0, None)
    return np.asarray(covered / (voxels / count), dtype=kind)


def _shape(prepared: PreprocessedScan) -> tuple[int, int, int]:
    x, y, z = prepared.array.shape[1:]
    return (x, y, z)


def _spacing(prepared: PreprocessedScan) -> tuple[float, float, float]:
    x, y, z = affine_spacing(prepared.affine)
    return (x, y, z)
