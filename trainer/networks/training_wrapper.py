"""A network as it is exported, without what only its training needs."""

from __future__ import annotations

from torch import nn


class TrainingWrapper(nn.Module):
    """A module around the network that is exported, with parts that only training needs.

    Attributes:
        network: The network that is exported.
    """

    network: nn.Module


def unwrap_network(network: nn.Module) -> nn.Module:
    """The network that is exported."""
    return network.network if isinstance(network, TrainingWrapper) else network
