"""Several networks as one that answers with the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


class NetworkEnsemble(nn.Module):
    """Logits whose softmax (of ``regions``: whose sigmoid) is the mean of the networks'."""

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
