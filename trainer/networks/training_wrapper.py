"""Wrappers that add to a network what only its training needs, and their removal."""

from __future__ import annotations

from torch import nn


class TrainingWrapper(nn.Module):
    """A module around the network that is exported, with modules that only training needs.

    Attributes:
        network: The network that is exported.
    """

    network: nn.Module


def unwrap_network(network: nn.Module) -> nn.Module:
    """Return the network that is exported: the wrapped one, or the network itself if it has no wrapper."""
    return network.network if isinstance(network, TrainingWrapper) else network
