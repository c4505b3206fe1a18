"""How good both networks of finished M&N runs are, on the development scans.

PYTHONPATH=docs/results/mn_weights python docs/results/mn_weights/networks.py DATA RUN [RUN ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from semiseg.dataset import load_dataset
from semiseg.evaluation.bootstrap import bootstrap_differences
from semiseg.evaluation.evaluator import evaluate
from trainer.comparison import metric_table
from trainer.suggestion import load_committee

data, runs = Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]]
dataset = load_dataset(data)
cases = json.loads((data / "split.json").read_text())["development"]
tables = {}
for run in runs:
    for name, voter in load_committee([run]).members.items():
        table = metric_table(evaluate(voter.segment, dataset, cases, title=run.name), "dice", cases).mean(axis=1)
        tables[run.name, name] = table
        print(f"{run.name}, {name}: Dice {table.mean():.4f} ({len(cases)} development scans)")
for name in dict.fromkeys(name for _, name in tables):
    first, *others = (tables[run.name, name] for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        away = bootstrap_differences((first - other)[None])
        print(f"{name}, {runs[0].name} minus {run.name}: {away.mean:+.4f} [{away.low:+.4f}, {away.high:+.4f}]")
