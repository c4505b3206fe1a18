"""Training from the labelling server in rounds; each round is a separate process that may outlive the server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from semiseg.dataset.split_file import SplitFile
from semiseg.errors import InputError, validation_message
from semiseg.system.file_locks import exclusive_lock
from semiseg.system.processes import process_start_id, start_detached, stop_process, supports_start_ids
from server.http.limits import ApiError
from server.labelling.acceptance import select_holdout
from server.labelling.dataset_labels import write_training_view
from server.labelling.datastore import Datastore
from server.labelling.model_history import ModelHistory
from server.labelling.record import FINAL
from server.labelling.tasks import MAX_DETAIL_LINES, TrainingTask
from server.labelling.training_progress import TrainingProgress, read_training_progress
from server.labelling.training_round import (
    DECISION,
    OUTPUT,
    PROGRESS,
    REQUEST,
    RUN,
    STOP,
    TRAINING,
    VIEW,
    RoundProgress,
    RoundRequest,
    TrainingConfig,
    read_progress,
    read_request,
    write_document,
)

START_SECONDS = 60.0  # time within which a round's process has to report
STOP_SECONDS = 40.0
_INTERRUPTED = "The process of the training ended without a result; start the training again to resume it."
_LOOK = threading.Lock()  # two simultaneous tests of a round's lock would each mistake the other for the round
_RUNNING = "A training is running already; stop it first."


@dataclass(frozen=True)
class _Round:
    """The current state of a round."""

    folder: Path
    request: RoundRequest
    progress: RoundProgress
    alive: bool

    @property
    def interrupted(self) -> bool:
        return self.progress.status in ("SUBMITTED", "RUNNING") and not self.alive


def read_config(path: Path | None) -> TrainingConfig:
    """Read the configuration of the training from a YAML file; without a file, return the defaults.

    Raises:
        InputError: The file cannot be read, or is not a valid configuration.
    """
    if path is None:
        return TrainingConfig()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        config = TrainingConfig.model_validate(document)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The configuration {path} cannot be read: {' '.join(str(error).split())}.") from None
    except ValidationError as error:
        raise InputError(f"In {path}: {validation_message(error)}.") from None
    recipe = path.parent / config.recipe
    return config.model_copy(update={"recipe": str(recipe.resolve())}) if recipe.is_file() else config


def can_train() -> bool:
    """Return True if the packages for training and export are installed; nothing is imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "monai", "onnx", "accelerate"))


class RoundTraining:
    """Starts, monitors and stops rounds; at most one runs at a time."""

    name = "semiseg"

    def __init__(self, store: Datastore, config: TrainingConfig, data: Path, bundle: Path | None) -> None:
        """Use the rounds in the state folder; a running round that an earlier server started is monitored, too.

        Args:
            store: Dataset and its labels.
            config: Configuration of the training.
            data: Folder of the dataset, as given on the command line.
            bundle: Bundle that is in use before any change of the model.
        """
        self._store, self._config, self._data, self._bundle = store, config, data, bundle
        self._folder = store.state / TRAINING
        self._models = ModelHistory(store.state)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, request: dict[str, Any], who: str) -> TrainingTask:
        """Start a round, or resume the last one if it was interrupted and no label has changed since.

        Raises:
            ApiError: 409, there is no label to train on; 429, a round is running; 500, its process does not start.
        """
        with self._lock:
            rounds = self._rounds()
            if rounds and rounds[-1].alive:
                raise ApiError(429, _RUNNING)
            folder = self._interrupted(rounds) or self._new_round(request, who, len(rounds) + 1)
            self._launch(folder)
            return self._task(self._read(folder))

    def tasks(self) -> list[TrainingTask]:
        """All rounds, oldest first."""
        return [self._task(one) for one in self._rounds()]

    def stop(self, who: str) -> TrainingTask | None:
        """Stop the running round and wait until it has stopped; return None if there is none."""
        with self._lock:
            rounds = self._rounds()
            if not rounds or not rounds[-1].alive:
                return None
            folder = rounds[-1].folder
            (folder / STOP).write_text(json.dumps({"who": who, "time": time.time()}), encoding="utf-8")
            until = time.monotonic() + STOP_SECONDS
            while (found := self._read(folder)).alive and time.monotonic() < until:
                time.sleep(0.2)
            return self._task(found)

    def describe(self) -> dict[str, Any]:
        """The document about the trainer for ``GET /info/``."""
        warm = "from the weights of the last accepted model" if self._config.warm_start else "from random weights"
        return {"description": f"Trains with the recipe {Path(self._config.recipe).name}, {warm}.", "config": {}}

    def statistics(self) -> dict[str, Any]:
        """Progress of the last round, with the field names of MONAI Label; its epochs are updates here."""
        rounds = self._rounds()
        if not rounds:
            return {}
        last, progress = rounds[-1], self._progress(rounds[-1])
        found: dict[str, Any] = {
            "epoch": progress.update,
            "total_epochs": max(progress.updates, 1),
            "best_metric": progress.best_dice or 0,
            "phase": last.progress.phase,
            "curve": progress.curve,
        }
        if last.alive:
            return {**found, "seconds_left": progress.seconds_left, "estimate": progress.estimate}
        return {**found, "total_time": _duration(last.progress.end - last.progress.start)}

    def _rounds(self) -> list[_Round]:
        if self._process is not None and self._process.poll() is not None:
            self._process = None  # poll has reaped the process
        if not self._folder.is_dir():
            return []
        folders = [path for path in self._folder.iterdir() if path.name.isdigit() and (path / PROGRESS).is_file()]
        return [self._read(folder) for folder in sorted(folders)]

    def _read(self, folder: Path) -> _Round:
        progress = read_progress(folder)
        alive = progress.status == "RUNNING" and _is_held(folder)
        if progress.status == "RUNNING" and not alive:
            progress = read_progress(folder)  # the round may have ended between the two reads
        return _Round(folder, read_request(folder), progress, alive)

    def _new_round(self, asked: dict[str, Any], who: str, number: int) -> Path:
        """Create the folder of a round with its data, the scans for the comparison, and its initial weights."""
        split, judged, because = self._parts()
        folder = self._folder / f"{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # left by a start that failed before its progress was written
        folder.mkdir(parents=True)
        sums = write_training_view(self._store, folder / VIEW, split)
        compared = (*(split.labelled or ()), *judged)
        learned = self._learned_by_the_model_in_use()
        request = RoundRequest(
            id=folder.name,
            who=who,
            asked=asked,
            config=self._config,
            start_from=self._start_from(),
            first_bundle=str(self._bundle.resolve()) if self._bundle is not None else "",
            labels=sums,
            labelled=tuple(split.labelled or ()),
            unseen=tuple(image for image in compared if learned.get(image) != sums[image]),
            confirmed=tuple(image for image in compared if self._is_confirmed(image)),
            judged_on=tuple(judged),
            judged_because=because,
        )
        write_document(folder / REQUEST, request)
        write_document(folder / PROGRESS, RoundProgress(start=time.time()))
        return folder

    def _parts(self) -> tuple[SplitFile, list[str], str]:
        """The split of a round, and the scans on which the models are compared.

        Raises:
            ApiError: 409, no label is left to train on.
        """
        split = self._store.split()
        labelled = list(split.labelled or ())
        judged = [image for image in split.validation if self._store.label(image, FINAL) is not None]
        because = "They are the validation scans of the split."
        if not split.validation:
            judged = select_holdout(labelled, self._config.acceptance)
            because = "They were held back: they have a final label and are not used for training."
            kept = {*judged}
            train = tuple(image for image in split.train or () if image not in kept)
            labelled = [image for image in labelled if image not in kept]
            split = split.model_copy(update={"labelled": tuple(labelled), "train": train})
        if not labelled:
            raise ApiError(409, "There is no final label to train on yet; label some scans first.")
        return split, judged, because

    def _learned_by_the_model_in_use(self) -> dict[str, str]:
        """SHA-256 of each label that the model in use was trained on.

        For a model that was not made by a round this is unknown; it is assumed to be trained on the dataset's labels.
        """
        current = self._models.current()
        if current is not None and current.round:
            request = read_request(self._folder / current.round)
            return {image: request.labels[image] for image in request.labelled}
        own = {image: self._store.label(image, FINAL) for image in self._store.base.labelled}
        return {
            image: self._store.checksum(label.file)
            for image, label in own.items()
            if label is not None and label.record is None
        }

    def _is_confirmed(self, image: str) -> bool:
        label = self._store.label(image, FINAL)
        return label is not None and label.info.get("confirmed") is True

    def _start_from(self) -> str:
        """The run of the model in use, if a round made it and the configuration has a warm start; else empty."""
        current = self._models.current()
        if not self._config.warm_start or current is None or not current.round:
            return ""
        run = self._folder / current.round / RUN
        return run.relative_to(self._store.state).as_posix() if (run / "run.json").is_file() else ""

    def _interrupted(self, rounds: Sequence[_Round]) -> Path | None:
        """The folder of the last round, if it can be resumed: same labels and configuration, no process of it left."""
        if not rounds or not rounds[-1].interrupted:
            return None
        last = rounds[-1]
        if not _child_is_gone(last.progress):
            return None
        split, judged, _ = self._parts()
        now = {
            image: self._store.checksum(label.file) for image in last.request.labels if (label := self._final(image))
        }
        same = (
            now == last.request.labels
            and tuple(split.labelled or ()) == last.request.labelled
            and tuple(judged) == last.request.judged_on
            and last.request.config == self._config
        )
        return last.folder if same else None

    def _final(self, image: str) -> Any:
        return self._store.label(image, FINAL)

    def _launch(self, folder: Path) -> None:
        (folder / STOP).unlink(missing_ok=True)
        progress = read_progress(folder).model_copy(update={"status": "SUBMITTED", "end": 0.0, "pid": 0})
        write_document(folder / PROGRESS, progress)
        command = [
            *(sys.executable, "-m", "semiseg", "label"),
            *("--data", str(self._data), "--state", str(self._store.state), "run-round", folder.name),
        ]
        self._process = start_detached(command, folder / OUTPUT)
        until = time.monotonic() + START_SECONDS
        while read_progress(folder).status == "SUBMITTED":
            if self._process.poll() is not None or time.monotonic() > until:
                raise ApiError(
                    500, f"The process of the training did not start; see {OUTPUT} in the folder of the round."
                )
            time.sleep(0.05)

    def _progress(self, found: _Round) -> TrainingProgress:
        return read_training_progress(found.folder / RUN, running=found.alive and found.progress.phase == "training")

    def _task(self, found: _Round) -> TrainingTask:
        progress, status, result = found.progress, found.progress.status, found.progress.result
        if found.interrupted:
            status, result = "ERROR", _INTERRUPTED
        learned = len(found.request.labelled)
        begun = f"Round {found.request.id}: {learned} scans with a label."
        now = self._progress(found).estimate if found.alive and progress.phase == "training" else ""
        details = [begun, *progress.sentences, *([now] if now else []), *([result] if found.interrupted else [])]
        if (path := found.folder / DECISION).is_file():
            details.append(f"The evidence is in {path.relative_to(self._store.state).as_posix()}.")
        return TrainingTask(
            id=found.request.id,
            status=status,
            request={"model": self.name, "client_id": found.request.who},
            start_ts=_local(progress.start),
            end_ts=_local(progress.end) if progress.end else "",
            details=tuple(details[-MAX_DETAIL_LINES:]),
            result=result,
        )


def _is_held(folder: Path) -> bool:
    """Return True if a process holds the lock of a round's folder."""
    with _LOOK, contextlib.suppress(InputError), exclusive_lock(folder):
        return False
    return True


def _child_is_gone(progress: RoundProgress) -> bool:
    """Stop the training process of an interrupted round; return True if it no longer writes into the run."""
    if not supports_start_ids():
        return False
    if not stop_process(progress.child, progress.child_birth):
        return True
    until = time.monotonic() + STOP_SECONDS
    while process_start_id(progress.child) == progress.child_birth:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _local(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
