"""The order in which the weights of convolutions lie in memory, which decides the order of everything they compute."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

MemoryFormat = Literal["contiguous", "channels_last"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of dimensions of a convolution's weights."""


def use_memory_format(network: nn.Module, memory_format: MemoryFormat) -> nn.Module:
    """Store the weights of a network's 2D and 3D convolutions in a memory format, in place.

    PyTorch computes a convolution in channels-last order when its weights are stored so. Processors then need no
    conversion between convolutions. Values and gradients differ by rounding only.

    Args:
        network: The network; optimisers must be made afterwards, since its parameters get new storage.
        memory_format: ``contiguous`` is PyTorch's own order and changes nothing.

    Returns:
        The network.
    """
    if memory_format == "channels_last":
        for weights in network.parameters():
            order = CHANNELS_LAST.get(weights.dim())
            if order is not None:
                weights.data = weights.data.contiguous(memory_format=order)
    return network
