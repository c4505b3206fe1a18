"""A run killed at any moment, a checkpoint's writing included, and resumed ends with the weights of one left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semiseg.bundle.bundle import read_manifest
from semiseg.dataset import Dataset
from tests.fork_server import run_semiseg
from tests.trainer.factories import SEGFORMER_CONFIG, load_run_weights, make_tiny_recipe, weights_equal, write_phantoms
from trainer.checkpoints import load_state, read_log

# Six lives take a minute on an idle machine, and five beside other tests and trainings.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STEPS = 4 + 2 * 36  # 40 updates, of which a tenth on labels only


def train_arguments(dataset: Dataset, recipe: Path, run: Path) -> list[str]:
    return ["train", "--data", str(dataset.folder), "--recipe", str(recipe), "--out", str(run), "--device", "cpu"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user's shell would, with one thread."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=840
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    """Scans larger than the patch, so that foreground is predicted on the way; one of two labels is for validation."""
    made = write_phantoms(folder / "data")
    document = json.loads((made.folder / "split.json").read_text())
    first, second = document["labelled"]["2"]
    split = {**document, "labelled": {"2": [first]}, "validation": [second], "unlabelled": None}
    (made.folder / "split.json").write_text(json.dumps(split))
    return made


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    """M&N with everything on board that has a state: dropout, LoRA, batch statistics, noise, pseudo-masks."""
    student = {"kind": "unet", "channels": [4, 8], "residual_units": 0, "norm": "batch", "dropout": 0.1}
    changes: dict[str, Any] = {
        "student": student,
        "updates": 40,
        "checkpoint_every": 1,
        "validate_every": 10,
        "foreground": 1.0,
        "augmentation": {"rotate": 20, "noise": 0.1},
    }
    switches: dict[str, Any] = {
        "teacher": {"finetune": "lora", "config": SEGFORMER_CONFIG},
        "iterations": 2,
        "stage1": 0.1,
        "lrg": "fixed",
        "fixed_unlabelled": 1,
        "slices": 4,
        "refresh": [0.1, 0.3, 0.5],
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(make_tiny_recipe("mn", changes, **switches).model_dump(mode="json")))
    return file


@pytest.fixture(scope="module")
def left_alone(folder: Path, dataset: Dataset, recipe: Path) -> Path:
    done = run_semiseg(*train_arguments(dataset, recipe, folder / "alone"), cwd=ROOT, environ=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return folder / "alone"


@pytest.fixture(scope="module", params=[6, pytest.param(20, marks=pytest.mark.long)])
def killed(request: pytest.FixtureRequest, folder: Path, dataset: Dataset, recipe: Path) -> tuple[Path, dict[str, Any]]:
    """A run that was killed some times, and what happened to it."""
    if not hasattr(os, "fork"):
        pytest.skip("what kills the runs forks them, so that twenty of them do not take an hour")
    run = folder / f"killed{request.param}"
    arguments = train_arguments(dataset, recipe, run)
    done = command("tests/trainer/kill_and_resume.py", str(run), "7", str(request.param), *arguments, "--quiet")
    assert done.returncode == 0, done.stderr + done.stdout
    story = json.loads(done.stdout.splitlines()[-1])
    assert len(story["lives"]) == request.param
    return run, story


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "elapsed")} for row in read_log(run / "log.jsonl")]


@pytest.mark.timeout(300)
def test_kills_change_not_a_bit_of_the_weights(left_alone: Path, killed: tuple[Path, dict[str, Any]]) -> None:
    """TRN-04."""
    run, story = killed
    assert story["exit"] == 0
    reached = [life["step"] for life in story["lives"]]
    assert reached == sorted(reached)
    assert reached[-1] > STEPS / 5, f"the kills came too early in the run to say much: {reached}"
    halves = [life["half_written"] for life in story["lives"]]
    assert sum(h > 0 for h in halves) >= len(halves) // 4, (
        f"too few kills while a checkpoint was being written: {halves}"
    )
    assert weights_equal(load_run_weights(run), load_run_weights(left_alone))
    ours, theirs = (load_state(path / "checkpoint.pt", torch.device("cpu")) for path in (run, left_alone))
    assert ours.step == theirs.step == STEPS
    assert ours.best == theirs.best
    assert any(theirs.foreground.values()), "no foreground was predicted, so its being restored is not tested"
    for name in ("student", "teacher"):
        assert weights_equal(ours.networks[name], theirs.networks[name])
        for index, state in theirs.optimisers[name]["state"].items():
            assert weights_equal(ours.optimisers[name]["state"][index], state)


@pytest.mark.timeout(300)
def test_after_kills_the_log_has_every_row_once(left_alone: Path, killed: tuple[Path, dict[str, Any]]) -> None:
    run, _ = killed
    rows = rows_of(run)
    assert rows == rows_of(left_alone)
    training = [row["step"] for row in rows if "total" in row]
    assert training == sorted(set(training))
    assert training[:3] == [0, 10, 20]
    assert len([row for row in rows if "validation_dice" in row]) == 4


@pytest.mark.timeout(300)
def test_after_kills_the_run_folder_is_whole(left_alone: Path, killed: tuple[Path, dict[str, Any]]) -> None:
    run, _ = killed
    assert {p.name for p in run.iterdir()} == {p.name for p in left_alone.iterdir()}, "nothing half written is left"
    assert read_manifest(run / "run.json").validation == read_manifest(left_alone / "run.json").validation
