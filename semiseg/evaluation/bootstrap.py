"""Is one method better than another on the same scans? A paired bootstrap over cases.

Scans differ far more from each other than methods do on one scan, so the difference is taken within each scan first and
the scans are then drawn with replacement (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and
13: percentile interval). The interval speaks about other scans like these, with these two trained networks; it says
nothing about another training run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import InputError
from semiseg.evaluation.result import Evaluation

_BLOCK = 2**22  # drawn indices held at once, so that memory does not grow with cases x samples


@dataclass(frozen=True)
class Difference:
    """The mean of first - second over the scans, and where it would fall with other scans.

    Attributes:
        mean: mean difference; NaN without a pair.
        low, high: the percentile interval.
        pairs: scans counted.
        left_out: scans for which one of the two has no figure (NaN); look at them apart, they are not a tie.
    """

    mean: float
    low: float
    high: float
    pairs: int
    left_out: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; False without a pair."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Mean difference of two methods' figures on the same scans, in the same order, with a percentile interval.

    The draws depend on ``seed`` and the number of pairs alone, so swapping the methods mirrors the interval.

    Raises:
        InputError: the two lists differ in length, or ``samples`` or ``level`` make no interval.
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
    """The mean of differences (runs, scans) and its percentile interval, when both runs and scans are drawn again.

    With one run it speaks about other scans only. A scan that lacks a figure in any run is left out.
    """
    return hierarchical_bootstrap(differences[None], samples=samples, level=level, seed=seed)


def hierarchical_bootstrap(
    differences: NDArray[np.float64], *, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """The mean of differences (draws, seeds, scans) and its percentile interval.

    Draws of the labelled scans are drawn again, within each the seeds, and across all of them the scans, which every
    run judged. A level with one member is not drawn again, and the interval does not speak about it. With few members
    of a level the interval is too narrow by nature: by a factor of about sqrt((n - 1) / n) for n draws. A scan that
    lacks a figure in any run is left out. (Davison and Hinkley 1997, "Bootstrap methods and their application",
    section 3.8.)
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
    """First - second per segment, and over ``"all"`` segments (the mean of a scan's segments), scan by scan.

    Raises:
        InputError: the two judged other scans or other segments.
    """
    if first.segments != second.segments or set(first.cases) != set(second.cases):
        raise InputError(f"'{first.title}' and '{second.title}' did not judge the same scans and segments.")
    figures = [
        {(row.case, row.segment): row.value(metric) for row in evaluation.rows} for evaluation in (first, second)
    ]
    cases, segments = first.cases, first.segments
    out = {s: paired_bootstrap(*([of[case, s] for case in cases] for of in figures), seed=seed) for s in segments}
    if len(segments) > 1:
        means = ([sum(of[case, s] for s in segments) / len(segments) for case in cases] for of in figures)
        out["all"] = paired_bootstrap(*means, seed=seed)
    return out
