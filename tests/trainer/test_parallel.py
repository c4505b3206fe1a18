"""Two processes train as one: the same global batches, the same weights."""

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

from semiseg.dataset import Dataset
from tests.trainer.tiny import phantoms, recipe_of, same_weights, trained, weights_of
from trainer.recipe import Recipe


def together(count: int, dataset: Dataset, recipe: Recipe, run: Path, *options: str) -> str:
    """Train with ``count`` processes and return what they said.

    Gloo sometimes aborts a process after its last line of Python, so that the exit code says nothing: the caller looks
    at what was written.
    """
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*launcher, "-m", "tests.trainer.one_of_several", str(dataset.folder), str(file), str(run), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


AGREEING = {"noise": 0.0, "weight": 1.0, "ramp": 0.0}
FIXED_2D = {
    "cotrain": "fixed2d",
    "stage1": 0.0,
    "lrg": "linear",
}  # the SegFormer's batch norm sees one process's slices


@pytest.mark.parametrize(
    ("method", "batch", "switches"),
    [
        ("supervised", 4, {}),
        ("self_training", 4, {"first": 0.5}),
        ("mean_teacher", 4, {**AGREEING, "labelled": 1}),
        ("mean_teacher", 2, AGREEING),  # one process has no unlabelled patch, the other no labelled one
        ("uamt", 2, {**AGREEING, "passes": 2}),
        ("acmt", 4, AGREEING),
        ("cps", 4, {"weight": 1.0, "ramp": 0.0}),
        ("bcp", 8, {"pretrain": 0.3}),
        ("mn", 4, {**FIXED_2D, "loss": "pooled"}),
        ("mn", 4, {**FIXED_2D, "loss": "weighted"}),
    ],
)
def test_two_processes_end_with_one_processs_weights(
    tmp_path: Path, method: str, batch: int, switches: dict[str, Any]
) -> None:
    dataset = phantoms(tmp_path / "data")
    changes = {"batch": batch, "updates": 20, "optimiser": {"kind": "sgd", "rate": 0.05}}
    recipe = recipe_of(method, changes, **switches)
    said = together(2, dataset, recipe, tmp_path / "two")
    assert (tmp_path / "two" / "student.safetensors").is_file(), said
    trained(dataset, recipe, tmp_path / "one")
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4, msg=name)


def test_a_run_of_two_processes_resumes_to_the_same_weights(tmp_path: Path) -> None:
    dataset = phantoms(tmp_path / "data")
    batch_norm = {"student": {"kind": "unet", "channels": [4, 8], "residual_units": 0, "norm": "batch", "dropout": 0.2}}
    recipe = recipe_of("mean_teacher", {**batch_norm, "batch": 4, "updates": 12, "checkpoint_every": 4})
    together(2, dataset, recipe, tmp_path / "whole")
    together(2, dataset, recipe, tmp_path / "broken", "stop=7")
    assert not (tmp_path / "broken" / "student.safetensors").exists()
    said = together(2, dataset, recipe, tmp_path / "broken", "resume")
    assert (tmp_path / "broken" / "student.safetensors").is_file(), said
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken"))


@pytest.mark.parametrize(
    ("method", "batch", "words"),
    [("bcp", 4, "bcp combines 4 patches"), ("magicnet", 2, "magicnet combines 2 patches")],
)
def test_processes_that_would_part_what_belongs_together_are_refused(
    tmp_path: Path, method: str, batch: int, words: str
) -> None:
    dataset = phantoms(tmp_path / "data")
    switches = {"cubes": 2, "hidden": 8} if method == "magicnet" else {}
    said = together(2, dataset, recipe_of(method, {"batch": batch, "patch": [8, 8, 8]}, **switches), tmp_path / "run")
    assert words in said


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(tmp_path: Path) -> None:
    dataset = phantoms(tmp_path / "data")
    said = together(2, dataset, recipe_of("supervised", {"batch": 3}), tmp_path / "run")
    assert "cannot be shared evenly by 2 processes" in said
    assert not (tmp_path / "run").exists(), "refused before anything was written"


def test_the_command_under_torchrun_ends_well_and_writes_one_run(tmp_path: Path) -> None:
    dataset = phantoms(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    document = recipe_of("self_training", {"batch": 4, "updates": 6}, first=0.5).model_dump(mode="json")
    recipe.write_text(yaml.safe_dump(document))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli.app"]
    command = ["train", "--data", str(dataset.folder), "--recipe", str(recipe), "--device", "cpu"]
    for attempt in range(3):
        run = tmp_path / f"run{attempt}"
        done = subprocess.run(
            [*launcher, *command, "--out", str(run)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(run)], "one process speaks"
        assert (run / "student.safetensors").is_file()
        steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps)), "one process writes"
