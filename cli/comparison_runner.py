"""The runs of a comparison: trained in separate processes and evaluated in this one. It can be resumed.

OUT/calibration/METHOD    a short run that tells how long a method's updates take
OUT/splits/               the splits of draws and folds
OUT/told/TRIAL.json       what a run was told, so that nothing else is mixed in with it later
OUT/runs/TRIAL            the run, and below it the scores of each list of the split
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from cli.evaluate import EvaluationSubset, evaluation_notes, write_evaluation
from cli.models import open_model
from semiseg.dataset import evaluation_scans, load_dataset
from semiseg.dataset.resampling import make_folds, resample_labelled
from semiseg.dataset.split_file import SplitFile, find_split, read_split, write_split
from semiseg.errors import InputError, SemisegError
from semiseg.evaluation.evaluator import evaluate
from semiseg.inference.segmenter import SlidingWindowOptions
from semiseg.system.durable_files import replace_file
from trainer.checkpoints import RunFolder
from trainer.comparison import Trial
from trainer.recipe_files import find_recipe

CALIBRATION_UPDATES = 64  # updates of the short run
Report = Callable[[str], None]


@dataclass
class ComparisonRunner:
    """A comparison in its folder.

    Attributes:
        out: Folder of the comparison.
        data: Folder of the dataset.
        recipe: Recipe of all trials.
        split: File of the split; DATA/split.json by default.
        changes: Changes of the recipe, in the form of --set.
        on: List of the split on which the trials are evaluated.
        cache: Folder of the preprocessed scans.
        report: Function that is called with each message about the progress.
        failed: Messages of failed trials, by the name of the trial.
        updates: Number of updates of each method; for other methods the recipe's number counts.
        methods: Method of each row of the table whose name is another one.
    """

    out: Path
    data: Path
    recipe: str
    split: Path | None
    changes: tuple[str, ...]
    on: Literal["test", "development"]
    cache: Path
    report: Report
    failed: dict[str, str] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)

    def run(self, trial: Trial) -> Path:
        """The folder of a run."""
        return self.out / "runs" / trial.name

    def scores(self, trial: Trial) -> Path:
        """The folder of its scores."""
        return self.run(trial) / self.on

    def split_file_of(self, trial: Trial) -> Path | None:
        """The split file of a trial; None for the dataset's own."""
        return self._drawn_split_file(trial.draw, trial.fold) if trial.draw or trial.fold else self.split

    def write_splits(self, labelled: Sequence[int], draws: int, folds: int) -> None:
        """Draw the splits of a comparison that is repeated, and write down those that are not there yet.

        Raises:
            DatasetError: There are too few outlined scans, or no split to draw from.
            InputError: A split that is there is another one.
        """
        if not draws and not folds:
            return
        dataset = load_dataset(self.data)
        made: dict[tuple[int, int], SplitFile] = {}
        for draw in range(1, draws + 1) if draws else (0,):
            if folds:
                parts = make_folds(dataset, folds, labelled, draw=draw)
                made |= {(draw, fold): part for fold, part in enumerate(parts, start=1)}
            else:
                path = find_split(dataset, self.split)
                if path is None:
                    raise InputError(f"{self.data} has no split.json to draw from; make one, or use --folds.")
                made[draw, 0] = resample_labelled(dataset, read_split(dataset, path), labelled, draw)
        for (draw, fold), split in made.items():
            file = self._drawn_split_file(draw, fold)
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                write_split(split, file)
            elif _lists(read_split(dataset, file)) != _lists(split):
                raise InputError(f"{file} holds another split than this comparison would draw; name a new folder.")

    def _drawn_split_file(self, draw: int, fold: int) -> Path:
        return self.out / "splits" / f"draw{draw}-fold{fold}.json"

    def calibrate(self, trials: Sequence[Trial], minutes: float) -> None:
        """The budget of each method: its updates in ``minutes``, all its fixed costs included, from a short run."""
        for method in dict.fromkeys(trial.method for trial in trials):
            mine = [trial for trial in trials if trial.method == method]
            kept = self.out / "calibration" / f"{method}.json"
            if not kept.is_file():
                run = self.out / "calibration" / method
                shutil.rmtree(run, ignore_errors=True)  # left behind when a run was killed
                error = _semiseg(self._command(mine[0], run, f"updates={CALIBRATION_UPDATES}"), _device(0))
                if error is not None:
                    self.failed |= {trial.name: error for trial in mine}
                    continue
                rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
                seconds = max(row["elapsed"] for row in rows if "elapsed" in row)
                kept.write_text(json.dumps({"seconds": seconds, "updates": CALIBRATION_UPDATES}), encoding="utf-8")
            told = json.loads(kept.read_text(encoding="utf-8"))
            self.updates[method] = max(8, int(minutes * 60 / told["seconds"] * told["updates"]) // 8 * 8)
            self.report(f"{method}: {self.updates[method]} updates in {minutes:g} min")

    def require_same(self, trial: Trial) -> None:
        """Refuse to continue a run that began with other settings, since the table would compare different things.

        Raises:
            InputError: The run began with other settings.
        """
        mine = [c for c in self.changes if not is_method_specific(c) or c.startswith(f"{trial.method}:")]
        told = {
            "changes": [c for c in [*mine, *self._budget(trial)] if not c.startswith("threads=")],
            "recipe": _digest(find_recipe(self.recipe)),
            "split": _digest(self.split_file_of(trial) or self.data / "split.json"),
            "data": str(self.data.resolve()),
            **({"method": self.methods[trial.method]} if trial.method in self.methods else {}),
        }
        file = self.out / "told" / f"{trial.name}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(told).encode())
        elif json.loads(file.read_text(encoding="utf-8")) != told:
            raise InputError(
                f"{trial.name} in {self.out} was made with another recipe, split, budget or --set; "
                "name a new folder with --out."
            )

    def train(self, trials: Sequence[Trial], jobs: int) -> None:
        """Train what is not trained yet, ``jobs`` runs at a time; a run that fails stops no other."""
        devices: SimpleQueue[str | None] = SimpleQueue()
        for k in range(jobs):
            devices.put(_device(k))
        lock, ended = threading.Lock(), 0

        def one(trial: Trial) -> None:
            nonlocal ended
            run, error, since = self.run(trial), self.failed.get(trial.name), time.monotonic()
            # The scores are enough: the run itself may have been removed to save space.
            there = RunFolder(run).has_ended or (self.scores(trial) / "scores.json").is_file()
            if not there and error is None:
                resume = ["--resume"] if RunFolder(run).has_begun else []
                device = devices.get()
                error = _semiseg([*self._command(trial, run, *self._budget(trial)), *resume], device)
                devices.put(device)
            with lock:
                ended += 1
                if error is not None:
                    self.failed[trial.name] = error
                state = error or ("there already" if there else f"{time.monotonic() - since:.0f} s")
                self.report(f"trained {ended} of {len(trials)}: {trial.name}: {state}")

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, trials))

    def evaluate(self, trials: Sequence[Trial]) -> None:
        """Evaluate every trained run that has no scores yet."""
        for number, trial in enumerate(trials, start=1):
            there = (self.scores(trial) / "scores.json").is_file()
            if trial.name in self.failed:
                state = "not trained"
            elif there:
                state = "there already"
            else:
                state = "done"
                try:
                    self._evaluate(trial)
                except SemisegError as error:
                    state = self.failed[trial.name] = str(error)
            self.report(f"judged {number} of {len(trials)}: {trial.name}: {state}")

    def _evaluate(self, trial: Trial) -> None:
        dataset = load_dataset(self.data)
        opened = open_model(self.run(trial), SlidingWindowOptions())
        scans = evaluation_scans(dataset, self.split_file_of(trial), self.on)
        title = f"{trial.name} on {dataset.name}, {len(scans)} {self.on} scans"
        notes = evaluation_notes(opened.manifest, EvaluationSubset(self.on))
        write_evaluation(
            evaluate(opened.segmenter.segment, dataset, scans, title=title, notes=notes), self.scores(trial)
        )

    def _changes(self, method: str) -> list[str]:
        """Changes for every method, then those for this one, in the form of `semiseg train --set`."""
        own = [change.removeprefix(f"{method}:") for change in self.changes if change.startswith(f"{method}:")]
        return [*(change for change in self.changes if not is_method_specific(change)), *own]

    def _budget(self, trial: Trial) -> list[str]:
        return [f"updates={self.updates[trial.method]}"] if trial.method in self.updates else []

    def _command(self, trial: Trial, run: Path, *more: str) -> list[str]:
        """The command that trains ``trial`` in the folder ``run``."""
        changes = [*self._changes(trial.method), f"seed={trial.seed}", *more]
        method = self.methods.get(trial.method, trial.method)
        return [
            *("train", "--data", str(self.data), "--recipe", self.recipe, "--method", method),
            *("--labelled", str(trial.labelled), "--out", str(run), "--cache", str(self.cache), "--quiet"),
            *(["--split", str(split)] if (split := self.split_file_of(trial)) else []),
            *[part for change in changes for part in ("--set", change)],
        ]


def _lists(split: SplitFile) -> dict[str, object]:
    """The lists of scans of a split, without its description."""
    return split.model_dump(include={"test", "train", "labelled", "development"})


def is_method_specific(change: str) -> bool:
    """Return True for a change of the form METHOD:key=value."""
    return ":" in change.partition("=")[0]


def _semiseg(command: list[str], device: str | None) -> str | None:
    """Run a command of semiseg in a separate process and return its error message, or None."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    done = subprocess.run(
        [sys.executable, "-m", "semiseg", *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    last = [line for line in done.stderr.splitlines() if line.strip()]
    return last[-1].removeprefix("semiseg: ") if last else f"ended with exit code {done.returncode}"


def _digest(file: Path) -> str | None:
    """SHA-256 of a file; None for a split that does not exist."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _device(k: int) -> str | None:
    """The GPU for the k-th of several jobs; None leaves it to torch."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[k % len(names)] if count > 1 else None
