"""Configuration of a student whose module is not part of semiseg."""

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
    """A user's own 3D network; its properties are taken from this configuration.

    Attributes:
        function: Function ``package.module:function`` that builds the network. It is called as
            ``function(inputs, outputs, **settings)`` and returns a module.
        settings: Keyword arguments of the function.
        sides: Numbers of which the sides of a patch have to be multiples.
        several_sizes: True if the network takes patches of any size.
        modules: Names of the modules whose features some methods use, by their role (see :class:`NetworkConfig`).
        encoding: Names of the modules of the network's encoder.
        several_outputs: True for a network that returns a tuple in training: logits, and then coarser logits or other
            tensors for a user's own method (see :mod:`trainer.networks.outputs`). In evaluation it returns logits.
    """

    kind: Literal["custom"]
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
        """The setting ``several_sizes``."""
        return self.several_sizes

    def divisor(self) -> Triple:
        """Return the setting ``sides``."""
        return self.sides

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`; the network is run on one patch, too.

        Raises:
            RecipeError: The function or the network fails, the logits have another shape than expected, or a module
                that the configuration names does not exist.
        """
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
                f"The student {self.function} returns shape {list(shape)} for a patch of {list(patch)}; logits must "
                f"have shape {[1, outputs, *patch]}."
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
        """See :meth:`NetworkConfig.encoder`; the modules are those that the configuration names."""
        return tuple(f"network.{name}" if self.several_outputs else name for name in self.encoding)
