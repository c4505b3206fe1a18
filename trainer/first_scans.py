"""Which scans to outline first, before there is any label: some that are typical and different from one another.

The scans are the medoids of k-medoids clustering: each scan belongs to the nearest of them, and the sum of these
distances is as small as swapping one scan for another can make it (BUILD and SWAP of PAM: Kaufman and Rousseeuw,
"Finding groups in data", 1990, chapter 2). Scans that are unlike all others are neither chosen nor counted, because
such a sum would otherwise spend one of a few outlines on each of them.
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
"""What is known of the choice, printed with it."""

NEIGHBOURS = 2  # a scan is unlike all others if even its NEIGHBOURS nearest ones are far away
TUKEY_FENCE = 1.5  # interquartile ranges above the upper quartile from which a distance is far (Tukey 1977)
MIN_SCANS_FOR_OUTLIERS = 8  # scans below which quartiles say too little to leave one out
MIN_GAIN = 1e-9  # share of the sum of distances that a swap must save, so that rounding decides nothing


@dataclass(frozen=True)
class RepresentedScan:
    """A scan and the chosen scan that is nearest to it.

    Attributes:
        scan: Name of the scan.
        nearest: Name of the chosen scan; its own name for a chosen one.
        distance: Distance to it, in medians of the distances between two scans.
    """

    scan: str
    nearest: str
    distance: float


@dataclass(frozen=True)
class ScanSelection:
    """The scans to outline first.

    Attributes:
        chosen: Their names; the one that is nearest to most scans comes first.
        scans: All scans that could have been chosen, in the order of their names.
        outliers: Names of scans that were left out of the choice because they are unlike all others.
    """

    chosen: tuple[str, ...]
    scans: tuple[RepresentedScan, ...]
    outliers: tuple[str, ...] = ()

    def represented(self, chosen: str) -> tuple[RepresentedScan, ...]:
        """The other scans to which ``chosen`` is the nearest of the chosen ones, without those that are unlike all."""
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
        ids: Names of the scans that may be outlined; their order does not matter.
        count: Number of scans to choose.
        strategy: ``typical`` compares scans as they are stored, ``registered`` after an affine registration onto the
            most typical one; ``random`` draws them.
        seed: Of the draw; the other strategies draw nothing.
        progress: Called with the number of scans that were read and the number of all.

    Raises:
        InputError: There are fewer scans than ``count``, a scan is named twice, or one cannot be read.
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
    """The medoids of scans with given distances (scans, scans), without those that are unlike all others.

    Raises:
        InputError: There are fewer scans than ``count``, or a scan is named twice.
    """
    _check(names, count)
    unlike = find_outliers(distances)
    if np.count_nonzero(~unlike) < count:
        unlike = np.zeros(len(names), dtype=bool)
    kept = np.flatnonzero(~unlike)
    return _choice(names, distances, [int(kept[m]) for m in medoids(distances[np.ix_(kept, kept)], count)], unlike)


def select_at_random(names: Sequence[str], distances: NDArray[np.float64], count: int, seed: int) -> ScanSelection:
    """A draw of ``count`` scans that depends on ``seed`` and the names alone.

    Raises:
        InputError: There are fewer scans than ``count``, or a scan is named twice.
    """
    _check(names, count)
    places = {name: place for place, name in enumerate(names)}
    drawn = random.Random(f"first {seed}").sample(sorted(names), count)
    return _choice(names, distances, [places[name] for name in drawn], np.zeros(len(names), dtype=bool))


def medoids(distances: NDArray[np.float64], count: int) -> list[int]:
    """The places of ``count`` items whose distances (items, items) to the nearest of them have the smallest sum.

    BUILD adds the item that saves most, one by one; SWAP exchanges a medoid for another item while that saves
    something. The first of equal items is taken, so the result is the same at every call.
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
    """Which items (items,) are far from their :data:`NEIGHBOURS` nearest ones, by Tukey's fence over all items.

    A group of more than :data:`NEIGHBOURS` items that are near each other is a kind of its own and not unlike all.
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
        raise InputError(f"At least one scan has to be chosen; {count} were asked for.")
    if count > len(names):
        raise InputError(f"{count} scans were asked for, and there are {len(names)} to choose from.")


def _choice(
    names: Sequence[str], distances: NDArray[np.float64], chosen: Sequence[int], unlike: NDArray[np.bool_]
) -> ScanSelection:
    columns = distances[:, list(chosen)]
    nearest = columns.argmin(axis=1)
    nearest[list(chosen)] = np.arange(len(chosen))  # also where two chosen scans are equal
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
