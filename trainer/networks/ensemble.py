"""Several networks as one module that returns the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


class NetworkEnsemble(nn.Module):
    """A network whose logits' softmax (sigmoid for ``regions``) is the mean of its members' probabilities."""

    def __init__(self, networks: Iterable[nn.Module], *, regions: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, X, Y, Z) -> (N, outputs, X, Y, Z)."""
        logits = torch.stack([member(x) for member in self.members]).float()
        if self.regions:  # log p - log(1 - p)
            return functional.logsigmoid(logits).logsumexp(dim=0) - functional.logsigmoid(-logits).logsumexp(dim=0)
        return torch.log_softmax(logits, dim=2).logsumexp(dim=0) - math.log(len(self.members))
