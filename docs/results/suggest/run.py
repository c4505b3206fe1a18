"""Do four scans that `semiseg suggest` names beat four random ones?

    python docs/results/suggest/run.py DATA WORK [--method supervised] [--draws 4] [--set updates=1600 ...]

A run with 4 labels ranks the unlabelled scans. Then the method trains with 8: those 4 and the 4 first of the ranking,
or those 4 and 4 drawn at random, several times. All are judged on the same scans; what is printed is each one's mean
Dice, and the difference of the suggested ones to the mean of the draws, scan by scan, with its bootstrap interval.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from semiseg.evaluation.bootstrap import bootstrap_differences
from semiseg.evaluation.result import Evaluation
from trainer.comparison import metric_table

RECIPE = Path(__file__).parents[1] / "hippocampus" / "recipe.yaml"


def semiseg(*arguments: str) -> None:
    """Run a command, or end with what it says."""
    subprocess.run([sys.executable, "-m", "cli.app", *arguments], check=True)


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--method", default="supervised", help="that trains with 8 labels")
    parser.add_argument("--committee", default="mn", help="the method that ranks, trained with 4")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--on", default="test")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    options = parser.parse_args()
    work, data = options.work, options.data
    work.mkdir(parents=True, exist_ok=True)
    changes = [part for change in options.changes for part in ("--set", change)]
    common = ["--data", str(data), "--recipe", str(RECIPE), "--cache", str(work / "cache"), "--quiet", *changes]
    base = work / "committee"
    if not (base / "student.safetensors").is_file():
        semiseg("train", *common, "--method", options.committee, "--labelled", "4", "--out", str(base))
    semiseg("suggest", str(base), "--data", str(data), "--out", str(work / "suggestions"), "--count", "4")
    with (work / "suggestions" / "suggestions.csv").open() as stream:
        ranked = [row["scan"] for row in csv.DictReader(stream)]
    split = json.loads((data / "split.json").read_text())
    four = split["labelled"]["4"]
    split.pop("unlabelled", None)  # all other training scans
    chosen = {"suggested": ranked[:4], "least": ranked[-4:]}
    for k in range(options.draws):
        chosen[f"random{k}"] = [str(s) for s in np.random.default_rng(k).choice(sorted(ranked), 4, replace=False)]

    def train(name: str) -> Evaluation:
        run = work / name
        file = work / f"{name}.json"
        file.write_text(json.dumps({**split, "labelled": {"8": [*four, *chosen[name]]}}, indent=1))
        own = ["--split", str(file)]
        one = [*common, *own, "--method", options.method, "--labelled", "8", "--out", str(run)]
        if not (run / "student.safetensors").is_file():
            resume = ["--resume"] if (run / "log.jsonl").is_file() else []
            semiseg("train", *one, "--set", "threads=1", *resume)
        semiseg("evaluate", str(run), "--data", str(data), "--on", options.on, "--out", str(run / "scores"), *own)
        return Evaluation.from_json(run / "scores" / "scores.json")

    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(chosen, pool.map(train, chosen), strict=True))
    cases = found["suggested"].cases
    means = {name: metric_table(evaluation, "dice", cases).mean(axis=1) for name, evaluation in found.items()}
    for name, values in means.items():
        print(f"{name}: Dice {values.mean():.4f}  (added {', '.join(chosen[name])})")
    draws = np.stack([means[f"random{k}"] for k in range(options.draws)])
    for name in ("suggested", "least"):
        away = bootstrap_differences(means[name][None] - draws)
        print(f"{name} minus random ({options.draws} draws): {away.mean:+.4f} [{away.low:+.4f}, {away.high:+.4f}]")


if __name__ == "__main__":
    main()
