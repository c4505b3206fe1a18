"""A paired bootstrap says how far a mean difference would move with other scans."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.errors import InputError
from semiseg.evaluation.bootstrap import compare, hierarchical_bootstrap, paired_bootstrap
from semiseg.evaluation.metrics import SegmentScore
from semiseg.evaluation.result import NO_SCORE, Evaluation, ScoreRow

FIGURES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(FIGURES, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_swapping_the_methods_mirrors_the_interval(pairs: list[tuple[float, float]], seed: int) -> None:
    first, second = zip(*pairs, strict=True)
    one = paired_bootstrap(first, second, samples=200, seed=seed)
    other = paired_bootstrap(second, first, samples=200, seed=seed)
    assert (other.mean, other.low, other.high) == pytest.approx((-one.mean, -one.high, -one.low), abs=1e-12)


@given(FIGURES, st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_adding_the_same_to_every_scan_moves_the_interval_by_it(pairs: list[tuple[float, float]], more: float) -> None:
    first, second = zip(*pairs, strict=True)
    one = paired_bootstrap(first, second, samples=200)
    moved = paired_bootstrap([v + more for v in first], second, samples=200)
    assert (moved.mean, moved.low, moved.high) == pytest.approx((one.mean + more, one.low + more, one.high + more))


@given(FIGURES)
@settings(deadline=None, max_examples=60)
def test_the_interval_lies_within_the_differences_there_are(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = paired_bootstrap(first, second, samples=300)
    differences = [a - b for a, b in pairs]
    assert min(differences) - 1e-12 <= found.low <= found.high <= max(differences) + 1e-12
    assert found.mean == pytest.approx(np.mean(differences))


def test_the_same_seed_gives_the_same_interval_and_another_a_close_one() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.8, 0.1, 60), rng.normal(0.78, 0.1, 60)
    one, again, other = (paired_bootstrap(list(first), list(second), seed=s) for s in (3, 3, 4))
    assert one == again != other
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.003)


def test_the_interval_is_that_of_the_normal_law_for_many_scans() -> None:
    difference = np.random.default_rng(0).normal(0.02, 0.1, 400)
    found = paired_bootstrap(list(difference), [0.0] * 400, samples=20_000)
    half = 1.96 * difference.std(ddof=1) / math.sqrt(400)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.0005)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for trial in range(300):
        found = paired_bootstrap(list(rng.normal(0.1, 0.2, 40)), [0.0] * 40, samples=400, seed=trial)
        held += found.low <= 0.1 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_scans_without_a_figure_are_counted_and_not_taken_for_a_tie() -> None:
    found = paired_bootstrap([0.9, math.nan, 0.7, 0.8], [0.5, 0.5, math.nan, 0.4])
    assert (found.pairs, found.left_out) == (2, 2)
    assert found.mean == pytest.approx(0.4) and found.excludes_zero
    nothing = paired_bootstrap([math.nan], [1.0])
    assert math.isnan(nothing.mean) and nothing.pairs == 0 and not nothing.excludes_zero


def test_memory_stays_small_for_many_draws_of_many_scans() -> None:
    # 5000 scans x 2000 draws are ten million indices: more than one block, with the same law.
    found = paired_bootstrap([0.5] * 5000, [0.25] * 5000, samples=2000)
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_what_is_no_paired_comparison_is_refused() -> None:
    with pytest.raises(InputError, match="3 figures against 2"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="at least one sample"):
        paired_bootstrap([1], [1], samples=0)


def evaluation_of(title: str, dice: dict[str, tuple[float, float]]) -> Evaluation:
    rows = []
    for case, values in dice.items():
        for name, value in zip(("a", "b"), values, strict=True):
            figures = NO_SCORE if math.isnan(value) else SegmentScore(value, value, 1.0, 1.0, 1.0, 2.0, 2.0)
            rows.append(ScoreRow(case, name, figures))
    return Evaluation(title, ("a", "b"), tuple(rows))


def test_two_evaluations_are_compared_scan_by_scan_whatever_their_order() -> None:
    one = evaluation_of("one", {"s1": (0.9, 0.5), "s2": (0.8, 0.6), "s3": (0.7, math.nan)})
    two = evaluation_of("two", {"s3": (0.6, 0.1), "s1": (0.8, 0.5), "s2": (0.7, 0.4)})
    found = compare(one, two)
    assert found["a"].mean == pytest.approx(0.1) and found["a"].low == pytest.approx(0.1)
    assert found["b"].mean == pytest.approx(0.1) and found["b"].left_out == 1
    assert found["all"].mean == pytest.approx(((0.9 + 0.5 - 1.3) + (0.8 + 0.6 - 1.1)) / 4)
    with pytest.raises(InputError, match="do not have the same scans"):
        compare(one, evaluation_of("other", {"s1": (0.9, 0.5)}))


# --- draws, seeds, scans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["draws", "seeds", "scans"])
def test_the_interval_over_one_level_alone_is_scipys(axis: int) -> None:
    from scipy import stats

    values = np.random.default_rng(4).normal(0.02, 0.05, size=12)
    shape = [1, 1, 1]
    shape[axis] = 12
    found = hierarchical_bootstrap(values.reshape(shape), samples=20_000)
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = interval.high - interval.low
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(interval.high, abs=0.05 * width)


def test_the_spread_of_means_is_that_of_drawing_each_level_by_hand() -> None:
    random = np.random.default_rng(7)
    draws, seeds, scans = 4, 3, 9
    values = (
        random.normal(0, 0.03, (draws, 1, 1))
        + random.normal(0, 0.01, (draws, seeds, 1))
        + random.normal(0, 0.05, scans)
    )
    by_hand = []
    for _ in range(6000):
        of_scans = random.integers(scans, size=scans)
        runs = []
        for draw in random.integers(draws, size=draws):
            runs += [values[draw, seed, of_scans].mean() for seed in random.integers(seeds, size=seeds)]
        by_hand.append(np.mean(runs))
    found = hierarchical_bootstrap(values, samples=20_000)
    low, high = np.quantile(by_hand, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.06 * (high - low))
    assert found.high == pytest.approx(high, abs=0.06 * (high - low))


def test_more_draws_make_a_wider_interval_than_scans_alone_where_draws_differ() -> None:
    values = np.array([0.0, 0.03])[:, None, None] + np.random.default_rng(0).normal(0, 0.005, size=(2, 1, 40))
    over_all, over_scans = hierarchical_bootstrap(values), hierarchical_bootstrap(values.mean(axis=0)[None])
    assert over_all.high - over_all.low > 5 * (over_scans.high - over_scans.low)
