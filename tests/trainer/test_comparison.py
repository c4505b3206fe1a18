"""What several runs come to: means over scans and seeds, paired differences, and runs that cannot be compared."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.errors import InputError
from semiseg.evaluation.bootstrap import bootstrap_differences
from semiseg.evaluation.metrics import SegmentScore
from semiseg.evaluation.result import NO_SCORE, Evaluation, ScoreRow
from trainer.comparison import (
    Trial,
    format_table,
    make_trials,
    plot_comparison,
    read_evaluations,
    summarise_trials,
    write_csv,
)

CASES = ("a", "b", "c", "d")


def evaluation(dice: dict[str, tuple[float, float]]) -> Evaluation:
    """Two segments; Dice by scan."""
    rows = []
    for case, values in dice.items():
        for segment, value in zip(("low", "high"), values, strict=True):
            score = NO_SCORE if math.isnan(value) else SegmentScore(**{**NO_SCORE.__dict__, "dice": value})
            rows.append(ScoreRow(case, segment, score, error="it broke" if math.isnan(value) else None))
    return Evaluation("a run", ("low", "high"), tuple(rows), ())


def flat(value: float, *, segment_gap: float = 0.0, case_gap: float = 0.0) -> Evaluation:
    return evaluation({c: (value + k * case_gap, value + k * case_gap + segment_gap) for k, c in enumerate(CASES)})


def test_every_combination_is_a_trial_and_a_comparison_cut_short_is_fair() -> None:
    found = make_trials(["supervised", "mn"], [4, 8], [0, 1])
    assert len(found) == len({t.name for t in found}) == 8
    assert [t.method for t in found[:2]] == ["supervised", "mn"], "all methods of one seed and count first"
    assert {t.seed for t in found[:4]} == {0}


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        (([], [4], [0]), "at least one method"),
        ((["mn", "mn"], [4], [0]), "mn is named twice"),
        ((["mn"], [4], [1, 1]), "seed 1 is named twice"),
    ],
)
def test_lists_that_make_no_comparison_are_refused(lists: tuple[list[str], list[int], list[int]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_trials(*lists)


def test_figures_are_means_over_scans_and_seeds_and_differences_are_paired() -> None:
    found = {
        Trial("supervised", 4, 0): flat(0.50, segment_gap=0.1, case_gap=0.05),
        Trial("supervised", 4, 1): flat(0.54, segment_gap=0.1, case_gap=0.05),
        Trial("mn", 4, 0): flat(0.60, segment_gap=0.1, case_gap=0.05),
        Trial("mn", 4, 1): flat(0.66, segment_gap=0.1, case_gap=0.05),
        Trial("mn", 8, 0): flat(0.70),
    }
    lines = summarise_trials(found)
    assert [(line.labelled, line.method, line.seeds) for line in lines] == [
        (4, "supervised", 2),
        (4, "mn", 2),
        (8, "mn", 1),
    ]
    supervised, mn, alone = lines
    assert supervised.difference is None
    assert supervised.figures["dice"] == pytest.approx(0.52 + 0.05 + 0.075)
    assert mn.dice["high"] - mn.dice["low"] == pytest.approx(0.1)
    assert mn.spread == pytest.approx((0.60 + 0.125, 0.66 + 0.125))
    assert mn.difference is not None
    mean, low, high = mn.difference
    assert mean == pytest.approx(0.11)
    assert (low, high) == pytest.approx((0.10, 0.12)), "the scans agree; only the seeds differ"
    assert alone.difference is None, "nothing to compare with at 8 labels"


def test_a_scan_that_failed_is_counted_and_does_not_pass_for_a_zero() -> None:
    broken = evaluation({"a": (math.nan, math.nan), "b": (0.8, 0.8), "c": (0.8, 0.8), "d": (0.8, 0.8)})
    lines = summarise_trials({Trial("supervised", 4, 0): flat(0.5), Trial("mn", 4, 0): broken})
    assert lines[1].figures["dice"] == pytest.approx(0.8)
    assert lines[1].failures == 1
    assert lines[1].difference == pytest.approx((0.3, 0.3, 0.3)), "over the scans that both have"


def test_runs_that_judged_other_scans_are_refused() -> None:
    fewer = evaluation({"a": (0.5, 0.5)})
    with pytest.raises(InputError, match="mn-4-seed0 was not evaluated on the same scans"):
        summarise_trials({Trial("supervised", 4, 0): flat(0.5), Trial("mn", 4, 0): fewer})
    with pytest.raises(InputError, match="No run has finished"):
        summarise_trials({})


def test_the_interval_covers_the_mean_and_narrows_with_scans() -> None:
    random = np.random.default_rng(0)
    few, many = (random.normal(0.02, 0.05, size=(1, n)) for n in (20, 500))
    widths = []
    for differences in (few, many):
        found = bootstrap_differences(differences)
        mean, low, high = found.mean, found.low, found.high
        assert low < mean < high
        assert mean == pytest.approx(differences.mean())
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert widths[1] == pytest.approx(2 * 1.96 * 0.05 / math.sqrt(500), rel=0.15)
    nothing = bootstrap_differences(np.full((1, 3), np.nan))
    assert (nothing.pairs, nothing.left_out) == (0, 3)
    assert math.isnan(nothing.mean)


def test_table_csv_and_plot(tmp_path: Path) -> None:
    found = {
        Trial(m, n, s): flat(0.5 + 0.01 * n + 0.1 * (m == "mn"))
        for m in ("supervised", "mn")
        for n in (4, 8)
        for s in (0, 1)
    }
    lines = summarise_trials(found)
    rows = format_table(lines)
    assert len(rows) == 5
    assert all(len(row) == len(rows[0]) for row in rows)
    assert "+0.100 [+0.100, +0.100]" in rows[2]
    write_csv(lines, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as stream:
        read = list(csv.DictReader(stream))
    assert [float(r["dice"]) for r in read] == pytest.approx([line.figures["dice"] for line in lines])
    plot_comparison(lines, tmp_path / "plot.png", "a title")
    assert Image.open(tmp_path / "plot.png").size[0] > 500


def test_only_finished_trials_count(tmp_path: Path) -> None:
    flat(0.5).to_json(tmp_path / "scores.json")
    pairs = [(Trial("mn", 4, 0), tmp_path / "scores.json"), (Trial("mn", 4, 1), tmp_path / "none.json")]
    assert list(read_evaluations(pairs)) == [Trial("mn", 4, 0)]


# --- draws and folds -------------------------------------------------------------------------------------------------


def test_trials_of_draws_and_folds_have_names_of_their_own() -> None:
    found = make_trials(["supervised", "pkg.mod:Own"], [4], [0], draws=(1, 2), folds=(1, 2))
    assert len({t.name for t in found}) == len(found) == 8
    assert found[0].name == "supervised-4-seed0-draw1-fold1"
    assert found[1].name == "pkg.mod.Own-4-seed0-draw1-fold1", "no colon in the name of a folder"
    assert Trial("mn", 4, 0).name == "mn-4-seed0", "as comparisons of earlier versions have them"


def test_with_draws_the_interval_speaks_about_other_labelled_scans() -> None:
    found = {}
    for number, level in ((1, 0.50), (2, 0.60), (3, 0.70)):
        for seed in (0, 1):
            found[Trial("supervised", 4, seed, number)] = flat(level)
            found[Trial("mn", 4, seed, number)] = flat(level + 0.02 * number)
    supervised, mn = summarise_trials(found)
    assert (mn.draws, mn.seeds) == (3, 2)
    assert supervised.spread == pytest.approx((0.50, 0.70))
    assert supervised.figures["dice"] == pytest.approx(0.60)
    assert supervised.interval[0] < 0.55 and supervised.interval[1] > 0.65
    assert mn.difference is not None
    mean, low, high = mn.difference
    assert mean == pytest.approx(0.04)
    assert low == pytest.approx(0.02, abs=0.005) and high == pytest.approx(0.06, abs=0.005)
    headings, *rows = format_table([supervised, mn])
    assert "of draws" in headings
    assert "0.500 to 0.700" in rows[0]


def test_folds_are_joined_and_a_run_that_lacks_one_does_not_count() -> None:
    parts = {1: {"a": (0.5, 0.7), "b": (0.5, 0.7)}, 2: {"c": (0.9, 0.9), "d": (0.9, 0.9)}}
    found = {Trial("supervised", 4, 0, 0, fold): evaluation(dice) for fold, dice in parts.items()}
    found[Trial("mn", 4, 0, 0, 1)] = evaluation(parts[1])
    (line,) = summarise_trials(found)
    assert line.method == "supervised"
    assert line.figures["dice"] == pytest.approx((0.6 + 0.9) / 2)
    with pytest.raises(InputError, match="No run has been evaluated on all of its folds"):
        summarise_trials({Trial("a", 4, 0, 0, 1): evaluation(parts[1]), Trial("b", 4, 0, 0, 2): evaluation(parts[2])})
    with pytest.raises(InputError, match="mn-4-seed0-fold2 was not evaluated on the same scans"):
        summarise_trials({**found, Trial("mn", 4, 0, 0, 2): evaluation(parts[1])})
