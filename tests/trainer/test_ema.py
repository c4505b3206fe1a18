"""The moving average of the exported network, which a recipe may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    PARTNER_NETWORK,
    load_run_weights,
    make_recipe_for,
    make_tiny_recipe,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


def test_the_average_written_out_is_what_is_exported(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [16, 16, 16], "updates": 5, "checkpoint_every": 1}
    iterates = []
    for last in range(1, 6):
        run = tmp_path / str(last)
        if last < 5:
            train_and_interrupt(
                dataset, make_tiny_recipe("supervised", changes), run, last + 1, cache=tmp_path / "cache"
            )
        else:
            train_on_cpu(dataset, make_tiny_recipe("supervised", changes), run, cache=tmp_path / "cache")
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        iterates.append({name: value.clone() for name, value in state["networks"]["student"].items()})
    expected = iterates[0]
    for t, iterate in enumerate(iterates):
        decay = min(1 - 1 / (t + 1), 0.7)
        expected = {name: decay * value + (1 - decay) * iterate[name] for name, value in expected.items()}
    recipe = make_tiny_recipe("supervised", {**changes, "ema": 0.7})
    train_on_cpu(dataset, recipe, tmp_path / "ema", cache=tmp_path / "cache")
    found = load_run_weights(tmp_path / "ema")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not weights_equal(found, iterates[-1])


@pytest.mark.parametrize("method", ["mean_teacher", "dual", "self_training", "comparative", "bcp"])
def test_a_run_with_an_average_resumes_to_the_same_weights(dataset: Dataset, tmp_path: Path, method: str) -> None:
    changes = {"patch": [16, 16, 16], "updates": 8, "checkpoint_every": 3, "ema": 0.9}
    switches = {"dual": {"partner": PARTNER_NETWORK}}.get(method, {})
    recipe = make_recipe_for(method, changes, **switches)
    train_on_cpu(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache")
    train_and_interrupt(dataset, recipe, tmp_path / "broken", 7, cache=tmp_path / "cache")
    train_on_cpu(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True)
    assert weights_equal(load_run_weights(tmp_path / "whole"), load_run_weights(tmp_path / "broken"))


def test_a_student_that_starts_anew_takes_its_average_along(dataset: Dataset, tmp_path: Path) -> None:
    """In self-training's second round nothing of the first round's average is left."""
    changes = {"patch": [16, 16, 16], "updates": 6, "checkpoint_every": 1, "ema": 0.99}
    recipe = make_tiny_recipe("self_training", changes, first=0.5)
    train_and_interrupt(dataset, recipe, tmp_path / "run", 5)
    networks = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["networks"]
    for name, value in networks["student"].items():
        if value.is_floating_point():
            torch.testing.assert_close(networks["moving average"][name], value, atol=0.05, rtol=0)
