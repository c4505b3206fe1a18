"""Differences between evaluations on the same scans, with paired bootstrap intervals.

python docs/results/hippocampus/compare.py FIRST/scores.json SECOND/scores.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from semiseg.evaluation.bootstrap import compare
from semiseg.evaluation.result import Evaluation


def main(first: Path, second: Path) -> None:
    a, b = Evaluation.from_json(first), Evaluation.from_json(second)
    for segment, difference in compare(a, b, "dice").items():
        print(
            f"Dice {segment}: {difference.mean:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}], {difference.pairs} scans"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
