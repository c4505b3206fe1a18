"""Convolutions in another memory format compute the same, and what is kept does not depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    ALL_METHODS,
    load_run_weights,
    make_recipe_for,
    make_tiny_recipe,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.memory_format import use_memory_format


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


def test_weights_of_2d_and_3d_convolutions_are_stored_channels_last() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv3d(3, 4, 3), torch.nn.Linear(3, 3))
    values = [p.clone() for p in network.parameters()]
    use_memory_format(network, "channels_last")
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(new, old) for new, old in zip(network.parameters(), values, strict=True))


def test_convolutions_compute_in_that_order() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3), torch.nn.PReLU(), torch.nn.Conv3d(4, 4, 3))
    scans = torch.rand(2, 2, 16, 16, 16)
    assert not network(scans).is_contiguous(memory_format=torch.channels_last_3d)
    out = use_memory_format(network, "channels_last")(scans)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


# The networks of the other methods are made of the same layers.
QUICK = ("supervised", "mean_teacher", "mn", "cfr_ft", "dual", "mcnet")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in ALL_METHODS]
)
def test_every_method_comes_to_the_same_weights_but_for_rounding(dataset: Dataset, tmp_path: Path, method: str) -> None:
    # Plain gradient descent: Adam divides a gradient by its size, which makes rounding large where a gradient is zero.
    small = {"patch": [16, 16, 16], "updates": 2, "optimiser": {"kind": "sgd", "rate": 0.01}}
    for memory_format in ("contiguous", "channels_last"):
        recipe = make_recipe_for(method, {**small, "memory_format": memory_format})
        train_on_cpu(dataset, recipe, tmp_path / memory_format, cache=tmp_path / "cache")
    contiguous, channels_last = load_run_weights(tmp_path / "contiguous"), load_run_weights(tmp_path / "channels_last")
    for name, weights in contiguous.items():
        torch.testing.assert_close(
            channels_last[name], weights, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_run_resumes_to_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_tiny_recipe("mean_teacher", {"batch": 4, "memory_format": "channels_last", "checkpoint_every": 3})
    train_on_cpu(dataset, recipe, tmp_path / "whole")
    train_and_interrupt(dataset, recipe, tmp_path / "broken", 7)
    train_on_cpu(dataset, recipe, tmp_path / "broken", resume=True)
    assert weights_equal(load_run_weights(tmp_path / "whole"), load_run_weights(tmp_path / "broken"))
