"""Selection of the scans to outline first, before any label exists: typical scans that differ from one another.

The selected scans are the medoids of k-medoids clustering: each scan belongs to the nearest medoid, and no swap of a
medoid for another scan makes the sum of these distances smaller (BUILD and SWAP of PAM: Kaufman and Rousseeuw, "Finding
groups in data", 1990, chapter 2). Outliers are neither selected nor counted in the sum, because each of them would
otherwise be likely to become a medoid.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from semiseg.dataset import Dataset
from semiseg.errors import InputError
from trainer.scan_distances import Progress, image_distances, registered_distances

Strategy = Literal["typical", "registered", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

EVIDENCE_NOTE = (
    "It has not been shown that networks trained on scans chosen in this way are better than networks trained on scans "
    "drawn at random: the choice may be no better than chance."
)
"""Evidence for the selection, printed with it."""

NEIGHBOURS = 2  # a scan is an outlier if even its nearest NEIGHBOURS scans are far away
TUKEY_FENCE = 1.5  # a distance is far if it is this many interquartile ranges above the upper quartile (Tukey 1977)
MIN_SCANS_FOR_OUTLIERS = 8  # with fewer scans, quartiles are too uncertain to exclude a scan
MIN_GAIN = 1e-9  # least share of the sum of distances that a swap must save, so that rounding has no influence


@dataclass(frozen=True)
class RepresentedScan:
    """A scan and the chosen scan that is nearest to it.

    Attributes:
        scan: Name of the scan.
        nearest: Name of the nearest chosen scan; a chosen scan's own name.
        distance: Distance to the chosen scan, in units of the median distance between two scans.
    """

    scan: str
    nearest: str
    distance: float


@dataclass(frozen=True)
class ScanSelection:
    """Scans to outline first.

    Attributes:
        chosen: Names of the chosen scans; the scan that represents the most scans comes first.
        scans: All candidates, ordered by name.
        outliers: Names of the scans that were excluded from the choice as outliers.
    """

    chosen: tuple[str, ...]
    scans: tuple[RepresentedScan, ...]
    outliers: tuple[str, ...] = ()

    def represented(self, chosen: str) -> tuple[RepresentedScan, ...]:
        """Return the other scans for which ``chosen`` is the nearest chosen scan, without outliers."""
        return tuple(r for r in self.scans if r.nearest == chosen != r.scan and r.scan not in self.outliers)


def select_first_scans(
    dataset: Dataset,
    ids: Sequence[str],
    count: int,
    strategy: Strategy = "typical",
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScanSelection:
    """Choose ``count`` of the scans ``ids`` by their images; no label file is opened.

    Args:
        dataset: The scans.
        ids: Names of the scans that may be outlined, in any order.
        count: Number of scans to choose.
        strategy: ``typical`` compares scans as they are stored, ``registered`` after an affine registration onto the
            most typical scan, and ``random`` draws scans at random.
        seed: Seed of the strategy ``random``; the other strategies are deterministic.
        progress: Called with the number of scans read so far and the total number.

    Raises:
        InputError: ``count`` is less than 1 or more than the number of scans, a scan is named twice, or a scan cannot
            be read.
    """
    names = sorted(ids)
    _check(names, count)
    between = image_distances(dataset, names, progress)
    if strategy == "random":
        return select_at_random(names, between, count, seed)
    if strategy == "registered":
        (pivot,) = select_typical(names, between, 1).chosen
        between = registered_distances(dataset, names, pivot, progress)
    return select_typical(names, between, count)


def select_typical(names: Sequence[str], distances: NDArray[np.float64], count: int) -> ScanSelection:
    """Choose the medoids of scans with given distances (scans, scans), excluding outliers.

    Outliers are included if fewer than ``count`` scans would remain.

    Raises:
        InputError: ``count`` is less than 1 or more than the number of scans, or a scan is named twice.
    """
    _check(names, count)
    unlike = find_outliers(distances)
    if np.count_nonzero(~unlike) < count:
        unlike = np.zeros(len(names), dtype=bool)
    kept = np.flatnonzero(~unlike)
    return _choice(names, distances, [int(kept[m]) for m in medoids(distances[np.ix_(kept, kept)], count)], unlike)


def select_at_random(names: Sequence[str], distances: NDArray[np.float64], count: int, seed: int) -> ScanSelection:
    """Draw ``count`` scans at random; the draw depends only on ``seed`` and the names.

    Raises:
        InputError: ``count`` is less than 1 or more than the number of scans, or a scan is named twice.
    """
    _check(names, count)
    places = {name: place for place, name in enumerate(names)}
    drawn = random.Random(f"first {seed}").sample(sorted(names), count)
    return _choice(names, distances, [places[name] for name in drawn], np.zeros(len(names), dtype=bool))


def medoids(distances: NDArray[np.float64], count: int) -> list[int]:
    """Return the indices of ``count`` medoids of items with given distances (items, items).

    BUILD adds one item after the other, each time the one that reduces the sum of the distances to the nearest medoid
    most. SWAP then exchanges a medoid for another item while this reduces the sum. The first of equal items is taken,
    so the result is deterministic.
    """
    found: list[int] = []
    nearest = np.full(len(distances), np.inf)
    for _ in range(count):
        sums = np.minimum(nearest[:, None], distances).sum(axis=0)
        sums[found] = np.inf
        found.append(int(np.argmin(sums)))
        nearest = np.minimum(nearest, distances[:, found[-1]])
    while True:
        cost = float(distances[:, found].min(axis=1).sum())
        best, swap = cost * (1.0 - MIN_GAIN), None
        for slot in range(count):
            others = found[:slot] + found[slot + 1 :]
            rest = distances[:, others].min(axis=1, initial=np.inf)
            sums = np.minimum(rest[:, None], distances).sum(axis=0)
            sums[others] = np.inf
            if sums.min() < best:
                best, swap = float(sums.min()), (slot, int(np.argmin(sums)))
        if swap is None:
            return found
        found[swap[0]] = swap[1]


def find_outliers(distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the items (items,) that are far from their :data:`NEIGHBOURS` nearest ones, by Tukey's fence over all items.

    Items in a group of more than :data:`NEIGHBOURS` items that are near each other are not outliers.
    """
    if len(distances) < MIN_SCANS_FOR_OUTLIERS:
        return np.zeros(len(distances), dtype=bool)
    away = np.sort(distances, axis=1)[:, NEIGHBOURS]  # the first is the item itself
    low, high = np.quantile(away, (0.25, 0.75))
    return np.asarray(away > high + TUKEY_FENCE * (high - low))


def _check(names: Sequence[str], count: int) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputError(f"Scan '{twice[0]}' is named twice.")
    if count < 1:
        raise InputError(f"At least one scan has to be chosen; {count} were requested.")
    if count > len(names):
        raise InputError(f"{count} scans were requested, but there are only {len(names)} to choose from.")


def _choice(
    names: Sequence[str], distances: NDArray[np.float64], chosen: Sequence[int], unlike: NDArray[np.bool_]
) -> ScanSelection:
    columns = distances[:, list(chosen)]
    nearest = columns.argmin(axis=1)
    nearest[list(chosen)] = np.arange(len(chosen))  # even if two chosen scans are equal
    scans = [
        RepresentedScan(name, names[chosen[k]], float(columns[place, k]))
        for place, (name, k) in enumerate(zip(names, nearest, strict=True))
    ]
    sizes = np.bincount(nearest[~unlike], minlength=len(chosen))
    order = sorted(range(len(chosen)), key=lambda k: (-sizes[k], names[chosen[k]]))
    return ScanSelection(
        chosen=tuple(names[chosen[k]] for k in order),
        scans=tuple(sorted(scans, key=lambda r: r.scan)),
        outliers=tuple(sorted(name for name, far in zip(names, unlike, strict=True) if far)),
    )
