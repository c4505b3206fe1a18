"""A student whose module comes from outside semiseg."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from trainer.errors import RecipeError
from trainer.network_configs.base import Layer, NetworkConfig, Triple
from trainer.networks.custom import build_custom_network, import_network_function
from trainer.networks.outputs import MultiOutputNetwork
from trainer.recipe import Positive


class CustomNetworkConfig(NetworkConfig):
    """A 3D network from anywhere.

    Attributes:
        function: ``package.module:function``, called as ``function(inputs, outputs, **settings)``; returns a module.
        settings: see there.
        sides: what the sides of a patch are multiples of, as you promise.
        several_sizes: whether it takes patches of any size, as you promise.
        modules: names of those that some methods look into (see :class:`NetworkConfig`).
        encoding: names of those of its encoder.
        several_outputs: true for a network that returns a tuple in training: logits, and then coarser logits, or what a
            method of one's own wants (see :mod:`trainer.networks.outputs`). In evaluation it returns logits.
    """

    kind: Literal["outside"]
    function: str
    settings: dict[str, Any] = Field(default_factory=dict)
    sides: tuple[Positive, Positive, Positive] = (1, 1, 1)
    several_sizes: bool = False
    modules: dict[Layer, str] = Field(default_factory=dict)
    encoding: tuple[str, ...] = ()
    several_outputs: bool = False

    @model_validator(mode="after")
    def _can_be_found(self) -> CustomNetworkConfig:
        import_network_function(self.function)
        return self

    @property
    def takes_any_size(self) -> bool:
        """As promised."""
        return self.several_sizes

    def divisor(self) -> Triple:
        """As promised."""
        return self.sides

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`; also tries the network on one patch."""
        network = build_custom_network(self.function, inputs, outputs, self.settings)
        network.eval()
        try:
            with torch.no_grad():
                shape = tuple(network(torch.zeros((1, inputs, *patch))).shape)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecipeError(f"The student {self.function} fails on a patch of {list(patch)}: {reason}") from None
        if shape != (1, outputs, *patch):
            raise RecipeError(
                f"The student {self.function} makes {list(shape)} of a patch of {list(patch)}; logits must be "
                f"{[1, outputs, *patch]}."
            )
        for role, name in (*self.modules.items(), *(("encoding", name) for name in self.encoding)):
            try:
                network.get_submodule(name)
            except AttributeError:
                raise RecipeError(f"The student {self.function} has no module {name!r} ({role}).") from None
        network.train()
        return MultiOutputNetwork(network) if self.several_outputs else network

    def _layers(self) -> dict[str, str]:
        inside = "network." if self.several_outputs else ""
        return {str(name): f"{inside}{module}" for name, module in self.modules.items()}

    def encoder(self) -> tuple[str, ...]:
        """As promised."""
        return tuple(f"network.{name}" if self.several_outputs else name for name in self.encoding)
