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
from tests.trainer.tiny import phantoms, recipe_of, trained, weights_of
from trainer.recipe import Recipe


def together(count: int, dataset: Dataset, recipe: Recipe, run: Path) -> str:
    """Train with ``count`` processes and return what they said.

    Gloo sometimes aborts a process after its last line of Python, so that the exit code says nothing: the caller looks
    at what was written.
    """
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*launcher, "-m", "tests.trainer.one_of_several", str(dataset.folder), str(file), str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("method", "switches"),
    [
        ("supervised", {}),
        ("mean_teacher", {"noise": 0.0, "weight": 1.0, "ramp": 0.0, "labelled": 1}),
        ("mn", {"loss": "pooled", "lrg": "linear"}),
        ("mn", {"loss": "weighted", "lrg": "linear"}),
    ],
    ids=["supervised", "mean_teacher", "mn", "mn, weighted"],
)
def test_two_processes_end_with_one_processs_weights(tmp_path: Path, method: str, switches: dict[str, Any]) -> None:
    if method == "mn":  # the SegFormer's batch norm and dropout belong to each process; the student has neither
        switches = {**switches, "cotrain": "fixed2d", "stage1": 0.0}
    dataset = phantoms(tmp_path / "data")
    recipe = recipe_of(method, {"batch": 4, "updates": 20, "optimiser": {"kind": "sgd", "rate": 0.05}}, **switches)
    said = together(2, dataset, recipe, tmp_path / "two")
    assert (tmp_path / "two" / "student.safetensors").is_file(), said
    trained(dataset, recipe, tmp_path / "one")
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4, msg=name)
    torch.manual_seed(recipe.seed)
    assert not any(torch.allclose(v, torch.zeros_like(v)) for v in one.values())


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
