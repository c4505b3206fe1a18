"""The picture shows every scan that has a figure, where it belongs, and names the worst and the best."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from semiseg.errors import InputError
from semiseg.evaluation.metrics import SegmentScore
from semiseg.evaluation.picture import (
    BEST,
    LEFT,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    WORST,
    draw_evaluation,
    rank_rows,
    save_picture,
)
from semiseg.evaluation.result import NO_SCORE, Evaluation, ScoreRow


def evaluation_of(
    values: list[float], segments: tuple[str, ...] = ("liver",), notes: tuple[str, ...] = ()
) -> Evaluation:
    rows = [
        ScoreRow(f"s{k}", name, NO_SCORE if math.isnan(v) else SegmentScore(v, v, 10 * v, v, v, 1.0, 1.0))
        for k, v in enumerate(values)
        for name in segments
    ]
    return Evaluation("a model on liver", segments, tuple(rows), notes)


def columns_of(picture: Image.Image, colour: str) -> list[int]:
    """Where the plot (not the text beside it) holds a colour, from left to right."""
    plot = np.asarray(picture)[TOP : TOP + ROW, LEFT - 8 : WIDTH - RIGHT + 8]
    return (LEFT - 8 + np.flatnonzero((plot == ImageColor.getrgb(colour)).all(axis=-1).any(axis=0))).tolist()


def test_worst_and_best_stand_at_their_values() -> None:
    picture = draw_evaluation(evaluation_of([0.5, 0.8, 0.75, 1.0]))
    worst, best = columns_of(picture, WORST), columns_of(picture, BEST)
    assert np.mean(worst) == pytest.approx(LEFT, abs=1)  # the axis of 0.5 .. 1 begins there
    assert np.mean(best) == pytest.approx(WIDTH - RIGHT, abs=1)


def test_for_a_distance_the_largest_is_the_worst() -> None:
    picture = draw_evaluation(evaluation_of([0.1, 0.4, 1.0]), "hd95_mm")
    assert np.mean(columns_of(picture, WORST)) > np.mean(columns_of(picture, BEST))
    assert [row.case for row in rank_rows(evaluation_of([0.1, 1.0, 0.4]).rows, "hd95_mm")] == ["s1", "s2", "s0"]
    assert [row.case for row in rank_rows(evaluation_of([0.1, 1.0, math.nan]).rows, "dice")] == ["s0", "s1"]


def test_a_scan_without_a_figure_is_not_drawn_as_zero() -> None:
    with_nan, without = (
        draw_evaluation(evaluation_of([0.9, 0.95, math.nan])),
        draw_evaluation(evaluation_of([0.9, 0.95])),
    )
    plot = (LEFT - 8, TOP, WIDTH - RIGHT + 8, TOP + ROW)
    assert with_nan.crop(plot).tobytes() == without.crop(plot).tobytes()
    assert with_nan.tobytes() != without.tobytes()  # it is counted beside the plot


def test_each_segment_and_each_note_has_its_room(tmp_path: Path) -> None:
    small = draw_evaluation(evaluation_of([0.5, 0.6]))
    large = draw_evaluation(
        evaluation_of([0.5, 0.6], ("liver", "spleen", "kidney"), ("Not validated.", "Only 2 scans."))
    )
    assert large.height == small.height + 2 * ROW + 2 * 18
    save_picture(evaluation_of([0.5, 0.6]), tmp_path / "dice.png")
    with Image.open(tmp_path / "dice.png") as read:
        assert (read.format, read.size) == ("PNG", small.size)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=12), st.sampled_from(["dice", "hd95_mm"]))
@settings(deadline=None, max_examples=25)
def test_any_figures_can_be_drawn_inside_the_plot(values: list[float], metric: str) -> None:
    picture = draw_evaluation(evaluation_of(values), metric)
    for colour in (WORST, BEST):
        found = columns_of(picture, colour)
        assert bool(found) or all(math.isnan(v) for v in values) or colour == WORST  # one scan: best covers worst
        assert all(LEFT - 6 <= x <= WIDTH - RIGHT + 6 for x in found)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InputError, match="no metric 'f1'; choose one of dice, jaccard"):
        draw_evaluation(evaluation_of([0.5]), "f1")
