"""CFR with a tiny foundation model and a tiny host, for the tests of both of its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.trainer.factories import PARTNER_NETWORK, SEGFORMER_CONFIG, SHORT_SCHEDULE, make_recipe_for
from trainer.methods import make_method
from trainer.methods.cfr import CFR
from trainer.methods.method import SegmentationTask
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses, Targets

TWO_CLASSES = ExclusiveClasses(2)

HOST_SWITCHES: dict[str, dict[str, Any]] = {
    "dual": {"partner": PARTNER_NETWORK},
    "mn": {"teacher": {"finetune": "whole", "config": SEGFORMER_CONFIG}, "iterations": 2, "stage1": 0.25},
    "comparative": SHORT_SCHEDULE,
    "contrastive": SHORT_SCHEDULE,
    "magicnet": {"cubes": 2, "hidden": 8, "ramp": 0.0},
    "mean_teacher": {"noise": 0.0, "ramp": 0.0},
}
"""SlidingWindowOptions with which each host is quick and deterministic on patches of 8 voxels a side."""


def make_cfr(
    changes: dict[str, Any] | None = None, targets: Targets = TWO_CLASSES, unlabelled: int = 12, **switches: Any
) -> CFR:
    """CFR by the tiny recipe with ``changes`` at its top level and ``switches`` of its own."""
    recipe = make_recipe_for("cfr", changes, **switches)
    recipe = recipe.model_copy(update={"methods": {**HOST_SWITCHES, **recipe.methods}})
    method = make_method(recipe, SegmentationTask(1, targets, 2, 4, unlabelled))
    assert isinstance(method, CFR)
    return method


def build_networks(method: CFR) -> dict[str, nn.Module]:
    """The networks of both parts, with the same weights at every call."""
    torch.manual_seed(0)
    return StageSequence(method).build()
