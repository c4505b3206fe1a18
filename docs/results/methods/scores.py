"""Figures of ended runs, scan by scan: `python docs/results/methods/scores.py pack|unpack WORK`.

`pack` copies them from a WORK folder of run.sh into scores/; `unpack` puts them into a new one, where run.sh then
trains what is missing.
"""

from __future__ import annotations

import csv
import math
import shutil
import sys
from dataclasses import fields
from pathlib import Path

from semiseg.evaluation.metrics import SegmentScore
from semiseg.evaluation.result import Evaluation, ScoreRow

KEPT = Path(__file__).parent / "scores"
NAMES = [field.name for field in fields(SegmentScore)]


def pack(work: Path) -> None:
    """Copy the figures of every judged run."""
    KEPT.mkdir(exist_ok=True)
    for file in sorted(work.glob("runs/*/test/scores.csv")):
        shutil.copy(file, KEPT / f"{file.parts[-3]}.csv")


def unpack(work: Path) -> None:
    """Write the figures where `semiseg compare` looks for them."""
    for file in sorted(KEPT.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            rows = tuple(row_of(line) for line in csv.DictReader(stream))
        target = work / "runs" / file.stem / "test" / "scores.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        segments = tuple(dict.fromkeys(row.segment for row in rows))
        Evaluation(file.stem, segments, rows).to_json(target)


def row_of(line: dict[str, str]) -> ScoreRow:
    """A row of a table of figures."""
    score = SegmentScore(**{name: number(line[name]) for name in NAMES})
    return ScoreRow(line["case"], line["segment"], score, number(line["seconds"]), line["error"] or None)


def number(text: str) -> float:
    """A figure; NaN where there is none."""
    return float(text) if text else math.nan


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]))
