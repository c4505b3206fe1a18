"""`semiseg compare`: methods x labels x seeds on one split with one budget, ending in one table and one plot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cli.evaluate import Scans, notes_of, write
from cli.models import open_model
from semiseg.atomic_file import replace_file
from semiseg.dataset import load_dataset, scans_to_judge
from semiseg.errors import InputError, SemisegError
from semiseg.evaluation.evaluate import evaluate
from semiseg.inference.segmenter import Settings

if TYPE_CHECKING:
    from trainer.comparison import Trial

app = typer.Typer(add_completion=False)

WIDTH = 160  # of the table in a file
CALIBRATION = 64  # updates of the short run that tells how long a method's updates take


class Judged(StrEnum):
    """The list of the split that the figures are made on."""

    test = "test"
    development = "development"


@dataclass(frozen=True)
class _Work:
    """What every run of the comparison is told."""

    data: Path
    recipe: str
    split: Path | None
    changes: tuple[str, ...]
    cache: Path
    on: Judged

    def train(self, method: str, labelled: int, seed: int, run: Path, *more: str) -> list[str]:
        """The command that trains one run."""
        own = [change.removeprefix(f"{method}:") for change in self.changes if change.startswith(f"{method}:")]
        changes = [*(c for c in self.changes if not _is_for_one(c)), *own, f"seed={seed}", *more]
        return [
            *("train", "--data", str(self.data), "--recipe", self.recipe, "--method", method),
            *("--labelled", str(labelled), "--out", str(run), "--cache", str(self.cache), "--quiet"),
            *(["--split", str(self.split)] if self.split else []),
            *[part for change in changes for part in ("--set", change)],
        ]

    def told(self, method: str, more: list[str]) -> dict[str, object]:
        """What decides the result of a run, but for what its name says."""
        from trainer.recipe import find_recipe

        changes = [c for c in self.changes if not _is_for_one(c) or c.startswith(f"{method}:")]
        return {
            "changes": [c for c in [*changes, *more] if not c.startswith("threads=")],
            "recipe": _digest(find_recipe(self.recipe)),
            "split": _digest(self.split or self.data / "split.json"),
            "data": str(self.data.resolve()),
        }

    def judge(self, run: Path, out: Path) -> str | None:
        """Evaluate a finished run; what there was to complain about, or None."""
        dataset = load_dataset(self.data)
        try:
            opened = open_model(run, Settings())
            scans = scans_to_judge(dataset, self.split, self.on.value)
            title = f"{run.name} on {dataset.name}, {len(scans)} {self.on.value} scans"
            notes = notes_of(opened.manifest, Scans(self.on.value))
            write(evaluate(opened.segmenter.segment, dataset, scans, title=title, notes=notes), out)
        except SemisegError as error:
            return str(error)
        return None


@app.command()
def compare(
    data: Annotated[Path, typer.Option(help="Dataset folder in Medical Segmentation Decathlon form.")],
    methods: Annotated[str, typer.Option(help="Methods, separated by commas: supervised,mean_teacher,mn.")],
    out: Annotated[Path, typer.Option(help="Folder for runs, table and plot; name it again to go on.")],
    labelled: Annotated[str, typer.Option(help="Counts of labelled scans, separated by commas.")] = "4",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    recipe: Annotated[
        str, typer.Option(help="One recipe for all: a file, or a name that comes with semiseg.")
    ] = "default",
    updates: Annotated[
        int | None, typer.Option(min=1, help="Budget: updates of the student; else the recipe's.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Budget: wall time of training, instead.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    on: Annotated[
        Judged, typer.Option(help="Judge on the test list, or while choosing settings on development.")
    ] = Judged.test,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe: key=value, or METHOD:key=value for one method; repeatable."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; with several GPUs they take turns.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Keep preprocessed scans here; by default in OUT.")] = None,
) -> None:
    """Train every method with every count of labels and every seed, judge them on the same scans, and compare."""
    from trainer.comparison import as_text, draw, finished, summarise, trials, write_csv

    if updates is not None and minutes is not None:
        raise InputError("A budget is --updates or --minutes, not both.")
    console = Console(stderr=True)
    strangers = {c.partition(":")[0] for c in set_ or [] if _is_for_one(c)} - set(_names(methods))
    if strangers:
        raise InputError(f"--set {sorted(strangers)[0]}:... is for a method that is not compared ({methods}).")
    todo = trials(_names(methods), _numbers(labelled, "--labelled"), _numbers(seeds, "--seeds"))
    fixed = (
        *(set_ or []),
        *([f"updates={updates}"] if updates else []),
        *([f"threads={_threads(jobs)}"] if jobs > 1 else []),
    )
    work = _Work(data, recipe, split, fixed, cache or out / "cache", on)
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    budgets = _budgets(work, todo, minutes, out, console, failed) if minutes is not None else {}
    commands = {}
    for trial in todo:
        more = [f"updates={budgets[trial.method]}"] if trial.method in budgets else []
        commands[trial] = work.train(trial.method, trial.labelled, trial.seed, runs / trial.name, *more)
        _same_as_before(out / "told" / f"{trial.name}.json", work.told(trial.method, more))
    devices: SimpleQueue[str | None] = SimpleQueue()
    for k in range(jobs):
        devices.put(_device(k))
    lock = threading.Lock()
    done = 0

    def tell(what: str, trial: Trial, state: str) -> None:
        nonlocal done
        done += 1
        console.print(f"{what} {done} of {len(todo)}: {trial.name}: {state}", highlight=False, soft_wrap=True)

    def train(trial: Trial) -> None:
        run = runs / trial.name
        started, error = time.monotonic(), failed.get(trial.name)
        there = (run / "student.safetensors").is_file() and (run / "preview.png").is_file()
        if not there and error is None:
            device = devices.get()
            error = _run([*commands[trial], *(["--resume"] if (run / "log.jsonl").exists() else [])], device)
            devices.put(device)
        with lock:
            if error is not None:
                failed[trial.name] = error
            tell("trained", trial, error or ("there already" if there else f"{time.monotonic() - started:.0f} s"))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, todo))
    done = 0
    for trial in todo:
        scores = runs / trial.name / on.value
        error = failed.get(trial.name)
        there = (scores / "scores.json").is_file()
        if not there and error is None:
            error = work.judge(runs / trial.name, scores)
            if error is not None:
                failed[trial.name] = error
        tell("judged", trial, "not trained" if error else ("there already" if there else "done"))
    found = finished((trial, runs / trial.name / on.value / "scores.json") for trial in todo)
    lines = summarise(found)
    title = f"{data.resolve().name}: {on.value} scans" + (f", {minutes:g} min each" if minutes else "")
    _show(as_text(lines), title)
    write_csv(lines, out / f"{on.value}.csv")
    draw(lines, out / f"{on.value}.png", title)
    remarks = dict.fromkeys(note for evaluation in found.values() for note in evaluation.notes)
    for remark in (*remarks, *(line.remark for line in lines if line.remark)):
        typer.echo(remark)
    for name, sentence in failed.items():
        console.print(f"failed: {name}: {sentence}", style="red", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _run(command: list[str], device: str | None) -> str | None:
    """Run a command of semiseg in a process of its own; what it complained about, or None."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    last = [line for line in done.stderr.splitlines() if line.strip()]
    return last[-1].removeprefix("semiseg: ") if last else f"ended with exit code {done.returncode}"


def _same_as_before(file: Path, told: dict[str, object]) -> None:
    """Refuse to go on in a folder whose run was told other things: the table would compare what is not comparable."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(told).encode())
    elif json.loads(file.read_text(encoding="utf-8")) != told:
        raise InputError(
            f"{file.stem} in {file.parent.parent} was made with another recipe, split, budget or --set; "
            "name a new folder with --out."
        )


def _digest(file: Path) -> str | None:
    """Of what a file says; None for a split that is not there."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _budgets(
    work: _Work, todo: Sequence[Trial], minutes: float, out: Path, console: Console, failed: dict[str, str]
) -> dict[str, int]:
    """Updates that each method makes in ``minutes``, from a short run of each, all its fixed costs included."""
    budgets: dict[str, int] = {}
    for method in dict.fromkeys(trial.method for trial in todo):
        mine = [trial for trial in todo if trial.method == method]
        kept = out / "calibration" / f"{method}.json"
        if not kept.is_file():
            first = mine[0]
            run = out / "calibration" / method
            shutil.rmtree(run, ignore_errors=True)  # what a kill left of it
            command = work.train(method, first.labelled, first.seed, run, f"updates={CALIBRATION}")
            error = _run(command, _device(0))
            if error is not None:
                failed.update({trial.name: error for trial in mine})
                continue
            rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            seconds = sorted(row["elapsed"] for row in rows if "elapsed" in row)
            kept.write_text(json.dumps({"seconds": seconds[-1], "updates": CALIBRATION}))
        told = json.loads(kept.read_text())
        budgets[method] = max(8, int(minutes * 60 / told["seconds"] * told["updates"]) // 8 * 8)
        console.print(f"{method}: {budgets[method]} updates in {minutes:g} min", highlight=False)
    return budgets


def _device(k: int) -> str | None:
    """The GPU for the k-th of several jobs; None leaves it to torch."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[k % len(names)] if count > 1 else None


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def _is_for_one(change: str) -> bool:
    """Whether a change is of the form METHOD:key=value."""
    return ":" in change.partition("=")[0]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise InputError(f"{option} takes whole numbers separated by commas, not {text!r}.") from None


def _show(rows: list[list[str]], title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if number == 1 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
