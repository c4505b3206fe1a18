"""Optimisers and their joint steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer.recipe import Optimiser


def make_optimiser(section: Optimiser, network: nn.Module) -> torch.optim.Optimizer:
    """Create the optimiser of a recipe for the trainable parameters of ``network``."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if section.kind == "sgd":
        return torch.optim.SGD(
            parameters, lr=section.rate, momentum=section.momentum, weight_decay=section.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=section.rate, weight_decay=section.weight_decay)


def step_optimisers(
    optimisers: Mapping[str, torch.optim.Optimizer],
    networks: Mapping[str, nn.Module],
    clip: Mapping[str, float | None],
    scaler: Any,
) -> None:
    """Clip the gradients and step all optimisers; with fp16, they share a scaler that is updated once at the end."""
    for name, optimiser in optimisers.items():
        if scaler is not None:
            scaler.unscale_(optimiser)
        limit = clip[name]
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(networks[name].parameters(), limit)
    for optimiser in optimisers.values():
        if scaler is None:
            optimiser.step()
        else:
            scaler.step(optimiser)
    if scaler is not None:
        scaler.update()
