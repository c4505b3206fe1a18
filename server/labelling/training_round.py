"""A round of training in a separate process: train, export, compare with the model in use, and accept or reject.

The process holds the lock of the round's folder while it works, so that other processes can tell whether it is alive.
It ends when the file ``stop.json`` appears there, and continues if the server that started it ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from semiseg.bundle.bundle import open_bundle
from semiseg.dataset.folder import load_dataset
from semiseg.errors import SemisegError
from semiseg.evaluation.evaluator import evaluate
from semiseg.evaluation.result import Evaluation
from semiseg.predicting.predictor import Predictor
from semiseg.system.durable_files import replace_file
from semiseg.system.file_locks import exclusive_lock
from semiseg.system.processes import process_start_id
from semiseg.system.signals import STOP_SIGNALS
from server.labelling.acceptance import AcceptanceCriteria, AcceptanceDecision, decide
from server.labelling.model_history import ModelHistory
from server.labelling.tasks import Status

REQUEST, PROGRESS, DECISION, STOP, OUTPUT = "request.json", "round.json", "decision.json", "stop.json", "output.log"
VIEW, RUN, BUNDLE = "data", "run", "bundle"
TRAINING, CACHE = "training", "cache"
POLL_INTERVAL = 0.5  # seconds between two checks whether the round is to stop
TERMINATE_TIMEOUT = 30.0  # seconds in which a training may end by itself before it is killed

Phase = Literal["waiting", "training", "exporting", "comparing", "ended"]


class TrainingConfig(BaseModel):
    """Configuration of the training; read from a YAML file and copied into each round before it starts.

    Attributes:
        recipe: File of a recipe, or name of a recipe that comes with semiseg.
        changes: Changes of the recipe, each ``key=value``.
        warm_start: True if a training starts from the weights of the last accepted one.
        threads: Number of CPU threads of the training and of the comparison; all by default.
        acceptance: Criteria of the acceptance of a new model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = "default"
    changes: tuple[str, ...] = ()
    warm_start: bool = True
    threads: Annotated[int, Field(ge=1)] | None = None
    acceptance: AcceptanceCriteria = AcceptanceCriteria()


class RoundRequest(BaseModel):
    """Request of a round; it is written before the round starts and never changed.

    Attributes:
        id: Id of the round.
        who: Name of the person who started it.
        asked: Parameters of the client's request.
        config: Configuration of the training.
        start_from: Folder of the run with the initial weights, below the state folder; empty for none.
        first_bundle: Bundle that is in use before any change of the model; empty for none.
        labels: SHA-256 of each label that the round may open, by the image's id.
        labelled: Scans that are trained on with their label.
        unseen: Scans for training or comparison whose label the model in use was not trained on.
        confirmed: Scans whose label a person has confirmed (``"confirmed": true`` in a note about it).
        judged_on: Scans on which the models are compared.
        judged_because: Reason for the choice of these scans.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    who: str
    asked: dict[str, Any] = {}
    config: TrainingConfig
    start_from: str = ""
    first_bundle: str = ""
    labels: dict[str, str]
    labelled: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    confirmed: tuple[str, ...] = ()
    judged_on: tuple[str, ...]
    judged_because: str


class RoundProgress(BaseModel):
    """Progress of a round.

    Attributes:
        status: State of the round.
        phase: Current phase of the round.
        start, end: Unix times of its start and end; ``end`` is 0 while it runs.
        pid: Process id of the round.
        birth: Start id of that process, which distinguishes it from a later one with the same process id.
        child: Process id of the process that trains or exports.
        child_birth: Start id of the process ``child``.
        sentences: Events in sentences, oldest first.
        result: Sentence about its result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status = "SUBMITTED"
    phase: Phase = "waiting"
    start: float
    end: float = 0.0
    pid: int = 0
    birth: str = ""
    child: int = 0
    child_birth: str = ""
    sentences: tuple[str, ...] = ()
    result: str = ""


class _Stopped(Exception):  # noqa: N818 - not an error
    """A user requested the round to stop."""


class _Interrupted(Exception):  # noqa: N818 - not an error
    """A signal requested the process to end."""


def read_progress(folder: Path) -> RoundProgress:
    """Read the progress of the round in a folder."""
    return RoundProgress.model_validate_json((folder / PROGRESS).read_text(encoding="utf-8"))


def read_request(folder: Path) -> RoundRequest:
    """Read the request of the round in a folder."""
    return RoundRequest.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))


def write_document(path: Path, document: BaseModel) -> None:
    """Write a document atomically as JSON."""
    replace_file(path, document.model_dump_json(indent=1).encode() + b"\n")


def run_round(folder: Path) -> None:
    """Run the round whose request is in ``folder``; its result is in ``round.json`` there.

    Raises:
        InputError: Another process runs the round.
    """
    with exclusive_lock(folder):
        _Round(folder).run()


class _Round:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder.parent.parent
        self.request = read_request(folder)
        self.progress = read_progress(folder)
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, _interrupt)
        pid = os.getpid()
        self._note(status="RUNNING", pid=pid, birth=process_start_id(pid), end=0.0, result="")
        try:
            result = self._work()
        except _Stopped:
            self._end("STOPPED", "The training was stopped.")
        except _Interrupted:
            self._end("ERROR", "The training was interrupted by the end of its process; start it again to resume it.")
        except SemisegError as error:
            self._end("ERROR", str(error))
        except Exception as error:
            self._end(
                "ERROR", f"The training failed unexpectedly ({type(error).__name__}); see {OUTPUT} in its folder."
            )
            raise
        else:
            self._end("DONE", result)
        finally:
            self._end_child()

    def _work(self) -> str:
        run, bundle = self.folder / RUN, self.folder / BUNDLE
        self._note(phase="training")
        self._semiseg(self._training(run))
        self._note("The training has ended.", phase="exporting")
        self._semiseg(["export", str(run), "--out", str(bundle)])
        self._note("The bundle is exported.", phase="comparing")
        history = ModelHistory(self.state)
        first = Path(self.request.first_bundle) if self.request.first_bundle else None
        current = history.bundle_in_use(first)
        decision = self._judge(bundle, current)
        replace_file(self.folder / DECISION, decision.model_dump_json(indent=1).encode() + b"\n")
        for reason in decision.reasons:
            self._note(reason)
        if decision.accepted:
            place = bundle.relative_to(self.state).as_posix()
            why = " ".join(decision.reasons[1:])
            history.add(place, sha256=open_bundle(bundle).sha256, round=self.request.id, who=self.request.who, why=why)
        return " ".join(decision.reasons)

    def _training(self, run: Path) -> list[str]:
        config = self.request.config
        changes = list(config.changes)
        if config.threads is not None:
            changes.append(f"threads={config.threads}")
        if self.request.start_from:
            changes.append(f"init_from={json.dumps(str((self.state / self.request.start_from).resolve()))}")
        return [
            *("train", "--data", str(self.folder / VIEW), "--out", str(run), "--recipe", config.recipe, "--quiet"),
            *("--cache", str(self.folder.parent / CACHE)),
            *(part for change in changes for part in ("--set", change)),
            *(["--resume"] if (run / "log.jsonl").is_file() else []),
        ]

    def _semiseg(self, arguments: Sequence[str]) -> None:
        """Run a command of semiseg to its end.

        Raises:
            SemisegError: The command failed; the message is its last line of output.
        """
        output = self.folder / OUTPUT
        since = output.stat().st_size if output.exists() else 0
        with output.open("ab") as file:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "semiseg", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._note(child=self.child.pid, child_birth=process_start_id(self.child.pid))
        while (code := self.child.poll()) is None:
            self._stop_if_asked()
            time.sleep(POLL_INTERVAL)
        self.child = None
        if code:
            with output.open("rb") as file:
                file.seek(since)
                lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
            said = lines[-1].removeprefix("semiseg: ") if lines else f"its exit code is {code}"
            raise SemisegError(f"`semiseg {arguments[0]}` failed: {said}")

    def _judge(self, bundle: Path, current: Path | None) -> AcceptanceDecision:
        config, request = self.request.config, self.request
        new = Predictor.load(bundle, threads=config.threads)
        old = Predictor.load(current, threads=config.threads) if current is not None else None
        scans = request.judged_on
        candidate = self._evaluated(new, scans, "new model") if scans else None
        before = self._evaluated(old, scans, "model in use") if scans and old is not None else None
        labels = self._evaluated(new, request.labelled, "labels of the training")
        unseen = None
        if old is not None and request.unseen:
            unseen = self._evaluated(old, request.unseen, "labels that are new to the model in use")
        return decide(
            config.acceptance,
            judged_because=request.judged_because,
            candidate=candidate,
            current=before,
            labels=labels,
            unseen=unseen,
            confirmed=request.confirmed,
            replaces=old is not None,
        )

    def _evaluated(self, predictor: Predictor, scans: Sequence[str], title: str) -> Evaluation:
        dataset = load_dataset(self.folder / VIEW)
        return evaluate(
            predictor.segmenter.segment, dataset, scans, title=title, progress=lambda *_: self._stop_if_asked()
        )

    def _stop_if_asked(self) -> None:
        if (self.folder / STOP).exists():
            raise _Stopped

    def _end_child(self) -> None:
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(TERMINATE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def _note(self, sentence: str = "", **changes: Any) -> None:
        sentences = (*self.progress.sentences, sentence) if sentence else self.progress.sentences
        self.progress = self.progress.model_copy(update={**changes, "sentences": sentences})
        write_document(self.folder / PROGRESS, self.progress)

    def _end(self, status: Status, result: str) -> None:
        self._end_child()
        last = self.progress.sentences[-1:]
        self._note(
            "" if last and last[0] in result else result, status=status, phase="ended", end=time.time(), result=result
        )


def _interrupt(_: int, __: FrameType | None) -> None:
    raise _Interrupted
