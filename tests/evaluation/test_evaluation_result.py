"""Tables, CSV and JSON say what the rows say, and never turn a missing figure into a number."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import InputError
from semiseg.evaluation.metrics import SegmentScore
from semiseg.evaluation.result import NO_SCORE, Evaluation, ScoreRow


def figures(dice: float, hd95: float = 2.0) -> SegmentScore:
    return SegmentScore(dice, dice / (2 - dice), hd95, hd95 / 2, hd95 / 3, 1.5, 1.25)


EMPTY = SegmentScore(0.0, 0.0, math.nan, math.nan, math.nan, 0.0, 1.25)
FOUND = Evaluation(
    "a model on Noise, 3 test scans",
    ("low", "high"),
    (
        ScoreRow("s0", "low", figures(0.9), 0.5),
        ScoreRow("s0", "high", figures(0.6, 4.0), 0.5),
        ScoreRow("s1", "low", figures(0.7), 0.25),
        ScoreRow("s1", "high", EMPTY, 0.25),
        ScoreRow("s2", "low", NO_SCORE, error='It broke, "here".'),
        ScoreRow("s2", "high", NO_SCORE, error='It broke, "here".'),
    ),
    ("Not validated.",),
)


def test_the_summary_counts_what_it_leaves_out() -> None:
    of = {(s.segment, s.metric): s for s in FOUND.summary()}
    dice = of["low", "dice"]
    assert (dice.mean, dice.median, dice.n, dice.missing) == (pytest.approx(0.8), pytest.approx(0.8), 2, 1)
    assert dice.std == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert (of["high", "dice"].mean, of["high", "dice"].missing) == (pytest.approx(0.3), 1)
    hd95 = of["high", "hd95_mm"]
    assert (hd95.mean, hd95.n, hd95.missing) == (4.0, 1, 2) and math.isnan(hd95.std)


def test_the_table_shows_units_spread_and_missing_figures() -> None:
    table = FOUND.table()
    assert table.header == ("Segment", "Dice", "Jaccard", "HD95 (mm)", "ASSD (mm)", "Scans")
    low, high, mean = table.rows
    assert (low[0], low[1], low[5]) == ("low", "0.800 ± 0.141*", "3")
    assert (high[3], high[5]) == ("4.00*", "3")
    assert (mean[0], mean[1], *mean[3:]) == ("mean", "0.550", "3.00", "1.50", "")
    lines = table.markdown().splitlines()
    assert lines[1] == "| --- " + "| ---: " * 5 + "|" and len(lines) == 5


def test_remarks_explain_every_asterisk_and_repeat_the_notes() -> None:
    assert FOUND.footnotes() == (
        "* low: 1 of 3 scan(s) without Dice and Jaccard (both masks are empty, or the scan failed).",
        "* low: 1 of 3 scan(s) without distances (a mask is empty, or the scan failed).",
        "* high: 1 of 3 scan(s) without Dice and Jaccard (both masks are empty, or the scan failed).",
        "* high: 2 of 3 scan(s) without distances (a mask is empty, or the scan failed).",
        "Not validated.",
    )


def test_a_table_without_missing_figures_has_no_asterisk() -> None:
    found = Evaluation("t", ("low",), (ScoreRow("s0", "low", figures(0.9)),))
    (row,) = found.table().rows  # and one segment has no mean of segments
    assert row[1] == "0.900" and found.footnotes() == ()


def test_a_segment_without_any_figure_shows_none() -> None:
    (row,) = Evaluation("t", ("low",), (ScoreRow("s0", "low", NO_SCORE, error="broke"),)).table().rows
    assert row[1] == "none*"


def test_csv_has_a_line_per_scan_and_segment_and_empty_cells_for_no_figure(tmp_path: Path) -> None:
    FOUND.to_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert (lines[0]["case"], lines[0]["segment"], float(lines[0]["dice"])) == ("s0", "low", 0.9)
    assert (lines[3]["dice"], lines[3]["hd95_mm"]) == ("0", "")
    assert lines[4]["dice"] == "" and lines[4]["error"] == 'It broke, "here".'


def test_json_is_strict_and_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    FOUND.to_json(path)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert document["summary"][0]["mean"] == pytest.approx(0.8) and document["rows"][3]["score"]["hd95_mm"] is None
    assert repr(Evaluation.from_json(path)) == repr(FOUND)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "rows": [{}]}'])
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(InputError, match="scores"):
        Evaluation.from_json(tmp_path / "scores.json")
    with pytest.raises(InputError, match="cannot be read"):
        Evaluation.from_json(tmp_path / "absent.json")


def test_a_segment_that_was_not_judged_is_refused() -> None:
    with pytest.raises(InputError, match="'spleen' was not evaluated; there are low, high"):
        FOUND.segment_rows("spleen")


def test_f1_is_that_of_the_mean_precision_and_the_mean_recall() -> None:
    scores = [SegmentScore(*[1.0] * 7, 9.0, p, r) for p, r in ((0.9, 0.2), (0.5, 1.0), (math.nan, 0.0))]
    found = Evaluation("t", ("low",), tuple(ScoreRow(f"s{k}", "low", score) for k, score in enumerate(scores)))
    f1 = next(s for s in found.summary() if s.metric == "f1")
    precision, recall = 1.4 / 2, 1.2 / 3
    assert f1.mean == pytest.approx(2 * precision * recall / (precision + recall))
    assert (f1.n, f1.missing) == (2, 1)
    table = found.table(("f1", "hd_mm"))
    assert table.header == ("Segment", "F1 of means", "HD (mm)", "Scans")
    assert table.rows[0] == ("low", "0.509*", "9.00 ± 0.00", "3")
    assert found.footnotes(("f1",)) == (
        "* low: 1 of 3 scan(s) without precision (nothing was found, or the scan failed).",
    )
    assert found.footnotes() == ()


def test_a_file_of_an_earlier_version_lacks_the_newer_figures(tmp_path: Path) -> None:
    FOUND.to_json(tmp_path / "new.json")
    document = json.loads((tmp_path / "new.json").read_text())
    for row in document["rows"]:
        for name in ("hd_mm", "precision", "recall"):
            del row["score"][name]
    (tmp_path / "old.json").write_text(json.dumps(document))
    read = Evaluation.from_json(tmp_path / "old.json")
    assert read.rows[0].value("dice") == 0.9 and math.isnan(read.rows[0].value("hd_mm"))
