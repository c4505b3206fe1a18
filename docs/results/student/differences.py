"""Differences between students, draw by draw and scan by scan: `python docs/results/student/differences.py WORK`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from semiseg.evaluation.bootstrap import hierarchical_bootstrap
from semiseg.evaluation.result import Evaluation
from trainer.comparison import metric_table

PAIRS = (("full", "small"), ("full-aug", "full"), ("full-aug-flip", "full-aug"))


def main(work: Path) -> None:
    """Print the difference in Dice of each pair, and its 95 % interval over draws and scans."""
    for one, other in PAIRS:
        runs = [
            {file.parts[-3]: Evaluation.from_json(file) for file in work.glob(f"{name}/runs/*/development/scores.json")}
            for name in (one, other)
        ]
        names = sorted(runs[0].keys() & runs[1].keys())
        cases = runs[0][names[0]].cases
        tables = [[metric_table(of[name], "dice", cases).mean(axis=1) for name in names] for of in runs]
        found = hierarchical_bootstrap(np.subtract(*tables)[:, None, :])
        print(f"{one} minus {other}: {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], {len(names)} draws")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
