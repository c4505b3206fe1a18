"""Features from inside a network, collected without changing the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from trainer.networks.training_wrapper import unwrap_network


@contextmanager
def features_out(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collect the output of the module named ``layer`` in each call of the network inside the ``with``."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(output)

    with _removed_after(_layer(network, layer).register_forward_hook(keep)):
        yield found


@contextmanager
def features_into(network: nn.Module, layer: str, size: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the input of the module named ``layer``, interpolated to ``size`` if its size differs."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0]
        if tuple(features.shape[2:]) != tuple(size):
            features = functional.interpolate(features, size=tuple(size), mode="trilinear", align_corners=False)
        found.append(features)

    with _removed_after(_layer(network, layer).register_forward_pre_hook(keep)):
        yield found


def _layer(network: nn.Module, name: str) -> nn.Module:
    """Return a module of a network by its name in the network that is exported."""
    return unwrap_network(network).get_submodule(name)


@contextmanager
def _removed_after(hook: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
