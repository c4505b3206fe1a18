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
from tests.trainer.factories import (
    PARTNER_NETWORK,
    SAM_CONFIG,
    THREE_LEVEL_NETWORK,
    load_run_weights,
    make_tiny_recipe,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.recipe import Recipe

AGREEING = {"noise": 0.0, "weight": 1.0, "ramp": 0.0}
FIXED_2D = {
    "cotrain": "fixed2d",
    "stage1": 0.0,
    "lrg": "linear",
}  # the SegFormer's batch norm sees one process's slices
SGD = {"updates": 20, "optimiser": {"kind": "sgd", "rate": 0.05}}
BATCH_NORM = {"kind": "unet", "channels": [4, 8], "residual_units": 0, "norm": "batch", "dropout": 0.2}

EQUAL = {
    "supervised": make_tiny_recipe("supervised", {**SGD, "batch": 4}),
    "self_training": make_tiny_recipe("self_training", {**SGD, "batch": 4}, first=0.5),
    "mean_teacher": make_tiny_recipe("mean_teacher", {**SGD, "batch": 4}, **AGREEING, labelled=1),
    # One process has no unlabelled patch, the other no labelled one.
    "mean_teacher, one patch each": make_tiny_recipe("mean_teacher", {**SGD, "batch": 2}, **AGREEING),
    "uamt, one patch each": make_tiny_recipe("uamt", {**SGD, "batch": 2}, **AGREEING, passes=2),
    "acmt": make_tiny_recipe("acmt", {**SGD, "batch": 4}, **AGREEING),
    "cps": make_tiny_recipe("cps", {**SGD, "batch": 4}, weight=1.0, ramp=0.0),
    "urpc": make_tiny_recipe("urpc", {**SGD, "batch": 4, "student": THREE_LEVEL_NETWORK}, weight=1.0, ramp=0.0),
    "mcnet": make_tiny_recipe("mcnet", {**SGD, "batch": 4}, ramp=0.0),
    "admt": make_tiny_recipe("admt", {**SGD, "batch": 4}, ramp=0.0, threshold=0.5, cutmix=0.0, period=3, copied=0.2),
    "dualfete": make_tiny_recipe("dualfete", {**SGD, "batch": 4}, ramp=0.0, threshold=0.5, cutmix=0.0, normalise=False),
    "bcp": make_tiny_recipe("bcp", {**SGD, "batch": 8}, pretrain=0.3),
    "dual": make_tiny_recipe("dual", {**SGD, "batch": 4}, partner=PARTNER_NETWORK, weight_semi=0.0, weight_con=0.0),
    "cfr": make_tiny_recipe(
        "cfr", {**SGD, "batch": 4}, sam=SAM_CONFIG, sam_updates=6, bend=0.0, sam_optimiser=SGD["optimiser"]
    ),
    "mn": make_tiny_recipe("mn", {**SGD, "batch": 4}, **FIXED_2D, loss="pooled"),
    "mn, weighted": make_tiny_recipe("mn", {**SGD, "batch": 4}, **FIXED_2D, loss="weighted"),
}
REFUSED = {
    "cannot be shared evenly by 2 processes": make_tiny_recipe("supervised", {"batch": 3}),
    "bcp combines 4 patches": make_tiny_recipe("bcp", {"batch": 4}),
    "ict needs 2 unlabelled": make_tiny_recipe("ict", {"batch": 4}),
    "dualfete needs 1 labelled": make_tiny_recipe("dualfete", {"batch": 4}, labelled=1),
    "magicnet combines 2 patches": make_tiny_recipe("magicnet", {"batch": 2}, cubes=2, hidden=8),
}
CONVERGING = make_tiny_recipe(
    "comparative",
    {"batch": 4, "updates": 2},
    **{"feature_updates": 30, "output_updates": 30, "look_every": 1, "window": 2, "least_updates": 3},
    converged=1.0,
    partitions=2,
    crops=4,
)
RESUMED = make_tiny_recipe("mean_teacher", {"student": BATCH_NORM, "batch": 4, "updates": 12, "checkpoint_every": 4})


def launcher(count: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def two(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs that two processes made, one after the other: to start them takes the longest."""
    folder = tmp_path_factory.mktemp("two")

    def job(name: str, recipe: Recipe, **options: Any) -> dict[str, Any]:
        return {"recipe": recipe.model_dump(mode="json"), "run": str(folder / name), **options}

    jobs = [job(name, recipe) for name, recipe in EQUAL.items()]
    jobs += [job(f"refused {k}", recipe) for k, recipe in enumerate(REFUSED.values())]
    jobs += [job("converging", CONVERGING)]
    jobs += [job("whole", RESUMED), job("broken", RESUMED, stop=7), job("broken", RESUMED, resume=True)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(*launcher(2), "tests.trainer.parallel_worker", str(dataset.folder), str(folder / "jobs.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_end_with_one_processs_weights(dataset: Dataset, two: Path, tmp_path: Path, name: str) -> None:
    train_on_cpu(dataset, EQUAL[name], tmp_path / "one")
    one, other = load_run_weights(tmp_path / "one"), load_run_weights(two / name)
    assert one.keys() == other.keys()
    for tensor in one:
        torch.testing.assert_close(other[tensor], one[tensor], rtol=0, atol=1e-4, msg=tensor)


def test_two_processes_leave_a_stage_that_has_converged_together(two: Path) -> None:
    """Each process sees other patches; if they did not agree on the end, they would wait for each other for ever."""
    rows = [json.loads(line) for line in (two / "converging" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 61
    assert len({row["step"] for row in rows if row.get("stage") in ("features", "output")}) < 6
    assert (two / "converging" / "student.safetensors").is_file()


def test_a_run_of_two_processes_resumes_to_the_same_weights(two: Path) -> None:
    assert weights_equal(load_run_weights(two / "whole"), load_run_weights(two / "broken"))


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_two_processes_cannot_share_is_refused_before_anything_is_written(two: Path, number: int) -> None:
    assert list(REFUSED)[number] in (two / f"refused {number}.refused").read_text()
    assert not (two / f"refused {number}").exists()


def test_the_command_under_torchrun_ends_well_and_writes_one_run(dataset: Dataset, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(make_tiny_recipe("supervised", {"batch": 4, "updates": 6}).model_dump(mode="json"))
    )
    command = ["train", "--data", str(dataset.folder), "--recipe", str(recipe), "--device", "cpu"]
    done = launch(*launcher(2), "semiseg", *command, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "run")], "one process speaks"
    assert (tmp_path / "run" / "student.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "one process writes"
