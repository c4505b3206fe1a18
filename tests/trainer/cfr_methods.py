"""CFR with a tiny foundation model and a tiny host, for the tests of both of its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.trainer.tiny import PARTNER, SEGFORMER, SHORT, recipe_for
from trainer.methods import make_method
from trainer.methods.cfr import CFR
from trainer.methods.method import Task
from trainer.stages import Stages
from trainer.targets import ExclusiveClasses, Targets

TWO = ExclusiveClasses(2)

HOST_SWITCHES: dict[str, dict[str, Any]] = {
    "dual": {"partner": PARTNER},
    "mn": {"teacher": {"finetune": "whole", "config": SEGFORMER}, "iterations": 2, "stage1": 0.25},
    "comparative": SHORT,
    "contrastive": SHORT,
    "magicnet": {"cubes": 2, "hidden": 8, "ramp": 0.0},
    "mean_teacher": {"noise": 0.0, "ramp": 0.0},
}
"""Settings with which each host is quick and deterministic on patches of 8 voxels a side."""


def cfr(changes: dict[str, Any] | None = None, targets: Targets = TWO, unlabelled: int = 12, **switches: Any) -> CFR:
    """CFR by the tiny recipe with ``changes`` at its top level and ``switches`` of its own."""
    recipe = recipe_for("cfr", changes, **switches)
    recipe = recipe.model_copy(update={"methods": {**HOST_SWITCHES, **recipe.methods}})
    method = make_method(recipe, Task(1, targets, 2, 4, unlabelled))
    assert isinstance(method, CFR)
    return method


def networks_of(method: CFR) -> dict[str, nn.Module]:
    """The networks of both parts, with the same weights at every call."""
    torch.manual_seed(0)
    return Stages(method).build()
