"""Are four scans that `semiseg suggest DATA` chooses before there is any label better than four random ones?

    python docs/results/suggest/first.py DATA WORK [--draws 20] [--seeds 1] [--jobs 2] [--set KEY=VALUE ...]

Supervised training with 4 labels on random draws of the labelled scans and on the scans that each strategy of
trainer.first_scans chooses, judged on the development scans. The script prints the mean Dice of each set, the number of
draws that are better than the chosen sets, and the differences to the draws. Finished runs in WORK are not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr

from semiseg.dataset import SplitFile, load_dataset, read_split, write_split
from semiseg.dataset.resampling import resample_labelled
from semiseg.evaluation.bootstrap import bootstrap_differences
from semiseg.evaluation.result import Evaluation
from trainer.comparison import metric_table
from trainer.first_scans import select_first_scans
from trainer.scan_distances import image_distances

LABELS = 4
CHOSEN = ("typical", "registered")
SETTINGS = ("updates=600", "student={kind: unet, channels: [16, 32, 64, 128], residual_units: 0}")


def semiseg(*arguments: str) -> None:
    """Run a command without its output, or end with its message."""
    done = subprocess.run([sys.executable, "-m", "cli.app", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"semiseg {' '.join(arguments)}\n{done.stderr}")


def main(
    data: Path,
    work: Path,
    draws: Annotated[int, typer.Option(help="Number of random draws of the labelled scans.")] = 20,
    seeds: Annotated[int, typer.Option(help="Number of training runs on each set of scans.")] = 1,
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = 2,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Settings of the recipe after the default ones.")
    ] = None,
) -> None:
    """See the file's first lines."""
    work.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, *(changes or [])]
    check_settings(work / "settings.json", settings)
    dataset = load_dataset(data)
    split = read_split(dataset, data / "split.json")
    train = sorted(split.train or set(dataset.cases) - {*split.test, *split.development})
    splits: dict[str, SplitFile] = {}
    for name in CHOSEN:
        scans = select_first_scans(dataset, train, LABELS, name).chosen
        method = f"Labelled scans chosen by their images: strategy {name} of trainer.first_scans."
        lists = {"labelled": {str(LABELS): scans}, "unlabelled": None}
        splits[name] = split.model_copy(update={**lists, "seed": None, "method": method, "description": ""})
    for draw in range(1, draws + 1):
        splits[f"random{draw:02d}"] = resample_labelled(dataset, split, [LABELS], draw)
    for name, made in splits.items():
        file = work / f"{name}.json"
        if not file.exists():
            write_split(made, file)
        elif read_split(dataset, file).labelled != made.labelled:
            sys.exit(f"{file} names other scans than those that are chosen now; name another folder.")
    labelled = {name: made.labelled[str(LABELS)] for name, made in splits.items()}

    def judged(name: str, seed: int) -> Evaluation:
        run, own = work / f"{name}-seed{seed}", ["--data", str(data), "--split", str(work / f"{name}.json")]
        if not (run / "student.safetensors").is_file():
            with_changes = [part for change in [*settings, f"seed={seed}", "threads=1"] for part in ("--set", change)]
            resume = ["--resume"] if (run / "log.jsonl").is_file() else []
            how = ["--recipe", "hippocampus", "--method", "supervised", "--labelled", str(LABELS), *with_changes]
            semiseg("train", *own, *how, "--cache", str(work / "cache"), "--quiet", "--out", str(run), *resume)
        if not (run / "scores" / "scores.json").is_file():
            semiseg("evaluate", str(run), *own, "--on", "development", "--out", str(run / "scores"))
        print(f"{run.name} is finished.", file=sys.stderr, flush=True)
        return Evaluation.from_json(run / "scores" / "scores.json")

    runs = [(name, seed) for seed in range(seeds) for name in splits]
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(runs, pool.map(lambda run: judged(*run), runs), strict=True))
    cases = next(iter(found.values())).cases
    dice = {
        name: np.mean([metric_table(found[name, seed], "dice", cases).mean(axis=1) for seed in range(seeds)], axis=0)
        for name in splits
    }
    between = image_distances(dataset, train)
    places = {name: [train.index(scan) for scan in scans] for name, scans in labelled.items()}
    away = {name: float(between[:, at].min(axis=1).mean()) for name, at in places.items()}
    report(dice, away, labelled)


def check_settings(path: Path, settings: list[str]) -> None:
    """Refuse a folder whose runs were trained with other settings, since finished runs are not repeated."""
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(f"{path.parent} holds runs with other settings ({path}); name another folder.")
    path.write_text(json.dumps(settings))


def report(dice: dict[str, NDArray[np.float64]], away: dict[str, float], labelled: dict[str, tuple[str, ...]]) -> None:
    """Print the sets, best first, and where the chosen ones lie among the draws.

    Args:
        dice: Mean Dice of each set on each scan, (scans,).
        away: Mean distance of the training scans, as they are stored, from the nearest scan of each set.
        labelled: The scans of each set.
    """
    for name in sorted(dice, key=lambda n: -dice[n].mean()):
        scans = ", ".join(labelled[name])
        print(f"{name}: Dice {dice[name].mean():.4f}, mean distance to the nearest {away[name]:.3f}  ({scans})")
    drawn = [name for name in dice if name not in CHOSEN]
    means = np.array([dice[name].mean() for name in drawn])
    draws = np.stack([dice[name] for name in drawn])
    low, middle, high = np.percentile(means, (0, 50, 100))
    deviation = means.std(ddof=1)
    print(f"{len(drawn)} draws: Dice {low:.4f} to {high:.4f}, median {middle:.4f}, standard deviation {deviation:.4f}")
    order = np.argsort(means)
    median = draws[order[[(len(drawn) - 1) // 2, len(drawn) // 2]]].mean(
        axis=0
    )  # of an even number, the two in the middle
    for name in CHOSEN:
        better = int((means > dice[name].mean()).sum())
        print(f"{name}: {better} of {len(drawn)} draws are better")
        for words, others in (("the median draw", median[None]), ("all draws, drawn again", draws)):
            far = bootstrap_differences(dice[name][None] - others)
            print(f"{name} minus {words}: {far.mean:+.4f} [{far.low:+.4f}, {far.high:+.4f}]")
    if len(drawn) > 3:
        found = spearmanr([away[name] for name in drawn], means)
        print(f"Correlation of a draw's mean distance with its Dice: {found.statistic:+.2f} (p = {found.pvalue:.2g})")


if __name__ == "__main__":
    typer.run(main)
