"""A student that starts from an earlier run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.dataset import Dataset
from semiseg.errors import SemisegError
from tests.trainer.factories import load_run_weights, make_recipe_for, make_tiny_plan, train_on_cpu, write_phantoms
from trainer.initial_weights import load_initial_weights
from trainer.recipe import Recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def earlier(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "earlier"
    train_on_cpu(dataset, make_recipe_for("comparative", {"patch": [16, 16, 8], "updates": 2}), run)
    return run


def recipe(earlier: Path, method: str = "supervised", **changes: Any) -> Recipe:
    return make_recipe_for(method, {"patch": [16, 16, 8], "updates": 2, "init_from": str(earlier), **changes})


@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "cps"])
def test_the_student_and_its_copy_start_from_the_earlier_weights(dataset: Dataset, earlier: Path, method: str) -> None:
    networks = make_tiny_plan(dataset, recipe(earlier, method)).stages.build()
    load_initial_weights(earlier, networks)
    wanted = load_run_weights(earlier)
    for name, network in networks.items():
        same = all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())
        assert same is (name in ("student", "teacher"))


def test_a_run_from_there_begins_where_that_one_ended(dataset: Dataset, earlier: Path, tmp_path: Path) -> None:
    still = {"optimiser": {"kind": "sgd", "rate": 1e-30, "weight_decay": 0.0}}
    train_on_cpu(dataset, recipe(earlier, **still), tmp_path / "run")
    before, after = load_run_weights(earlier), load_run_weights(tmp_path / "run")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_output_layer_for_other_segments_starts_anew(dataset: Dataset, earlier: Path) -> None:
    other = recipe(earlier, regions={"both": [1, 2]})
    networks = make_tiny_plan(dataset, other).stages.build()
    fresh = {key: value.clone() for key, value in networks["student"].state_dict().items()}
    load_initial_weights(earlier, networks)
    wanted, found = load_run_weights(earlier), networks["student"].state_dict()
    anew = [key for key in found if found[key].shape != wanted[key].shape]
    assert anew
    assert all(key.startswith("model.2") for key in anew)
    assert all(torch.equal(found[key], fresh[key] if key in anew else wanted[key]) for key in found)


def test_an_earlier_run_that_does_not_fit_is_refused(dataset: Dataset, earlier: Path, tmp_path: Path) -> None:
    wider = {"kind": "unet", "channels": [6, 8], "residual_units": 0}
    with pytest.raises(SemisegError, match=r"init_from: the student of .* is kind unet, channels \(4, 8\)"):
        make_tiny_plan(dataset, recipe(earlier, student=wider))
    with pytest.raises(SemisegError):
        make_tiny_plan(dataset, recipe(tmp_path / "nothing"))
