"""Who makes the patches of a run."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.factories import make_tiny_recipe
from trainer.device import loader_workers


def test_workers_are_for_a_gpu_unless_the_recipe_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    auto, three = make_tiny_recipe("supervised"), make_tiny_recipe("supervised", {"workers": 3})
    for cores, processes, expected in ((2, 1, 1), (6, 1, 5), (64, 1, 8), (16, 4, 3), (4, 4, 1)):
        monkeypatch.setattr("trainer.device.usable_processors", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert loader_workers(auto, gpu) == expected
        assert loader_workers(auto, cpu) == 0
        assert loader_workers(three, gpu) == loader_workers(three, cpu) == 3
