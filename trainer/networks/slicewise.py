"""A 2D network applied to volumes, slice by slice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.slices import from_slices, to_slices


class SlicewiseNetwork(nn.Module):
    """A 2D network that segments each slice of a volume by itself (M&N, Eq. 2).

    Attributes:
        network: Network from slices (N, C, H, W) to logits (N, K, H, W).
        axis: Spatial axis along which volumes are sliced.
        chunk: Number of slices per call of the network.
    """

    def __init__(self, network: nn.Module, axis: int, chunk: int) -> None:
        super().__init__()
        self.network = network
        self.axis, self.chunk = axis, chunk

    def forward(self, volumes: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> logits (N, K, X, Y, Z)."""
        slices = to_slices(volumes, self.axis)
        # An exported graph has one call, because the number of chunks would depend on the batch.
        chunks = (slices,) if torch.compiler.is_exporting() else slices.split(self.chunk)
        return from_slices(torch.cat([self.network(chunk) for chunk in chunks]), volumes.shape[0], self.axis)
