"""What the loop promises holds for every method: exact resume, reduced precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    ALL_METHODS,
    load_run_weights,
    make_recipe_for,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_resumes_to_the_same_weights(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = make_recipe_for(method, {"patch": [16, 16, 16], "updates": 8, "checkpoint_every": 3})
    train_on_cpu(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache")
    train_and_interrupt(dataset, recipe, tmp_path / "broken", 7, cache=tmp_path / "cache")
    train_on_cpu(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True)
    train_on_cpu(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True)  # nothing is left to do
    assert weights_equal(load_run_weights(tmp_path / "whole"), load_run_weights(tmp_path / "broken"))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_trains_in_bf16(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = make_recipe_for(method, {"patch": [16, 16, 16], "updates": 2, "precision": "bf16"})
    train_on_cpu(dataset, recipe, tmp_path / "run")
    assert all(bool(np.isfinite(v.numpy()).all()) for v in load_run_weights(tmp_path / "run").values())
