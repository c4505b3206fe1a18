"""Memory format of the weights of convolutions, which determines the memory format of their outputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

MemoryFormat = Literal["contiguous", "channels_last"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats by the number of dimensions of a convolution's weights."""


def use_memory_format(network: nn.Module, memory_format: MemoryFormat) -> nn.Module:
    """Store the weights of a network's 2D and 3D convolutions in a memory format, in place.

    PyTorch computes a convolution in channels-last order if its weights are stored in this order. On processors, no
    conversion is then needed between convolutions. Values and gradients differ only by rounding.

    Args:
        network: The network. Optimisers must be created afterwards, since its parameters get new storage.
        memory_format: The format; ``contiguous`` is PyTorch's default and changes nothing.

    Returns:
        The network.
    """
    if memory_format == "channels_last":
        for weights in network.parameters():
            order = CHANNELS_LAST.get(weights.dim())
            if order is not None:
                weights.data = weights.data.contiguous(memory_format=order)
    return network
