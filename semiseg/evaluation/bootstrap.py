"""Comparison of two methods on the same scans with a paired bootstrap over cases.

Scans differ far more from each other than methods do on one scan, so the difference is computed within each scan first,
and the scans are then resampled with replacement (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
chapters 6 and 13: percentile interval). The interval applies to other scans of this kind with these two trained
networks, not to other training runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import InputError
from semiseg.evaluation.result import Evaluation

_BLOCK = 2**22  # number of drawn indices held at once, so that memory does not grow with cases x samples


@dataclass(frozen=True)
class Difference:
    """Mean of first - second over the scans, with a percentile interval.

    Attributes:
        mean: Mean difference; NaN without a pair.
        low, high: Limits of the percentile interval.
        pairs: Number of scans that are compared.
        left_out: Number of scans for which one of the two has no value (NaN). They are not ties; inspect them.
    """

    mean: float
    low: float
    high: float
    pairs: int
    left_out: int

    @property
    def excludes_zero(self) -> bool:
        """True if the interval does not contain 0; False without a pair."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compute the mean difference of two methods' metrics on the same scans, with a percentile interval.

    The draws depend only on ``seed`` and the number of pairs, so swapping the methods mirrors the interval.

    Args:
        first: Values of the first method, one per scan.
        second: Values of the second method, in the same order of the scans.
        samples: Number of bootstrap samples.
        level: Level of the interval.
        seed: Seed of the draws.

    Raises:
        InputError: The two lists differ in length, or ``samples`` or ``level`` are out of range.
    """
    if len(first) != len(second):
        raise InputError(f"A paired comparison needs the same scans: {len(first)} figures against {len(second)}.")
    if samples < 1 or not 0 < level < 1:
        raise InputError(
            f"A bootstrap interval needs at least one sample and a level in (0, 1), not {samples}, {level}."
        )
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_differences(difference[None], samples=samples, level=level, seed=seed)


def bootstrap_differences(
    differences: NDArray[np.float64], *, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compute the mean of differences (runs, scans) and its percentile interval; runs and scans are resampled.

    With one run only the scans are resampled. A scan that lacks a value in any run is left out.
    """
    return hierarchical_bootstrap(differences[None], samples=samples, level=level, seed=seed)


def hierarchical_bootstrap(
    differences: NDArray[np.float64], *, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compute the mean of differences (draws, seeds, scans) and its percentile interval.

    The draws of the labelled scans are resampled, within each the seeds, and across all of them the scans, which every
    run was evaluated on. A level with one member is not resampled, and the interval does not cover its variation. With
    few members of a level the interval is inherently too narrow, by a factor of about sqrt((n - 1) / n) for n draws. A
    scan that lacks a value in any run is left out. (Davison and Hinkley 1997, "Bootstrap methods and their
    application", section 3.8.)
    """
    kept = differences[:, :, ~np.isnan(differences).any(axis=(0, 1))]
    draws, seeds, scans = kept.shape
    left_out = differences.shape[2] - scans
    if not scans:
        return Difference(math.nan, math.nan, math.nan, 0, left_out)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // kept.size)
    means = []
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        of_scans = generator.integers(scans, size=(count, 1, 1, scans))
        of_draws = np.broadcast_to(np.arange(draws)[None, :, None, None], (count, draws, 1, 1))
        if draws > 1:
            of_draws = generator.integers(draws, size=(count, draws, 1, 1))
        of_seeds = np.zeros((count, 1, 1, 1), dtype=int)
        if seeds > 1:
            of_seeds = generator.integers(seeds, size=(count, draws, seeds, 1))
        means.append(kept[of_draws, of_seeds, of_scans].mean(axis=(1, 2, 3)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Difference(float(kept.mean()), float(low), float(high), scans, left_out)


def compare(first: Evaluation, second: Evaluation, metric: str = "dice", *, seed: int = 0) -> dict[str, Difference]:
    """Compare two evaluations: first - second per segment, and over ``"all"`` segments (the mean per scan).

    Raises:
        InputError: The two evaluations have different scans or segments.
    """
    if first.segments != second.segments or set(first.cases) != set(second.cases):
        raise InputError(f"'{first.title}' and '{second.title}' do not have the same scans and segments.")
    figures = [
        {(row.case, row.segment): row.value(metric) for row in evaluation.rows} for evaluation in (first, second)
    ]
    cases, segments = first.cases, first.segments
    out = {s: paired_bootstrap(*([of[case, s] for case in cases] for of in figures), seed=seed) for s in segments}
    if len(segments) > 1:
        means = ([sum(of[case, s] for s in segments) / len(segments) for case in cases] for of in figures)
        out["all"] = paired_bootstrap(*means, seed=seed)
    return out
