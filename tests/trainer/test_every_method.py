"""What the loop promises holds for every method: exact resume, reduced precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import Dataset
from tests.trainer.tiny import EVERY, broken_off, phantoms, recipe_for, same_weights, trained, weights_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return phantoms(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("method", EVERY)
def test_every_method_resumes_to_the_same_weights(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = recipe_for(method, {"patch": [16, 16, 16], "updates": 8, "checkpoint_every": 3})
    trained(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache")
    broken_off(dataset, recipe, tmp_path / "broken", 7, cache=tmp_path / "cache")
    trained(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True)
    trained(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True)  # nothing is left to do
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken"))


@pytest.mark.parametrize("method", EVERY)
def test_every_method_trains_in_bf16(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = recipe_for(method, {"patch": [16, 16, 16], "updates": 2, "precision": "bf16"})
    trained(dataset, recipe, tmp_path / "run")
    assert all(bool(np.isfinite(v.numpy()).all()) for v in weights_of(tmp_path / "run").values())
