"""Base classes of the configurations of 3D networks."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from trainer.errors import RecipeError
from trainer.recipe import Section

Triple = tuple[int, int, int]
Stride = Annotated[int, Field(ge=1, le=4)]
Layer = Literal["deepest", "features", "compared"]
Rate = Annotated[float, Field(ge=0, lt=1)]


class NetworkConfig(Section):
    """Base class of the configurations, which are sections of a recipe.

    Attributes:
        any_size: True if one set of weights takes patches of several sizes.
        layers: Names of modules in the network, by their role. The output of ``deepest`` is the coarsest features; the
            input of ``features`` is the last features before the logits; the output of ``compared`` is the features
            that comparative pre-training compares first, by default the coarsest ones.
        encoders: Names of the modules from which decoders take features, including those of the skip connections.
    """

    any_size: ClassVar[bool] = True
    layers: ClassVar[dict[str, str]] = {}
    encoders: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def divisor(self) -> Triple:
        """Return the numbers of which a patch's sides have to be multiples."""

    @abstractmethod
    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """Build a new network with random weights.

        Args:
            inputs: Number of input channels.
            outputs: Number of channels of the logits.
            patch: Size of a patch in voxels.
        """

    @property
    def takes_any_size(self) -> bool:
        """True if the network takes windows of other sizes than the patch's."""
        return self.any_size

    def module_name(self, name: Layer) -> str:
        """Return the name, in the network, of the module with the role ``name``.

        Raises:
            RecipeError: The configuration does not name a module of this role.
        """
        layers = self._layers()
        found = layers.get(name) or (layers.get("deepest") if name == "compared" else None)
        if found is None:
            raise RecipeError(
                f"The student does not name its module with the role `{name}`, which this method needs; name it in "
                "`student.modules`, or take another student."
            )
        return found

    def encoder(self) -> tuple[str, ...]:
        """Return the names of the encoder's modules; none if the configuration does not name them."""
        return self.encoders

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Return the name of the module whose output is the decoder's features of each coarser level, finest first.

        Each comes with its number of channels. There are none if the configuration does not name them.
        """
        return ()

    def decoders(self) -> tuple[NetworkConfig, ...]:
        """Return this configuration and those that differ from it in their decoders only; by default this one alone."""
        return (self,)

    def _layers(self) -> dict[str, str]:
        return self.layers


class MonaiNetworkConfig(NetworkConfig):
    """A student that is one of MONAI's own networks, so that MONAI can build it without semiseg.

    Attributes:
        network_class: MONAI's class of the network.
    """

    network_class: ClassVar[type[nn.Module]]

    @abstractmethod
    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """Return the arguments of ``network_class``."""

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        return self.network_class(**self.arguments(inputs, outputs, patch))


def total_stride(strides: tuple[Triple, ...] | None, levels: int) -> Triple:
    """Return the product of the strides between ``levels`` levels, per axis; without strides, each of them is 2."""
    if strides is None:
        return (2 ** (levels - 1),) * 3
    x, y, z = (math.prod(stride[axis] for stride in strides) for axis in range(3))
    return (x, y, z)


def check_strides(strides: tuple[Triple, ...] | None, levels: int) -> None:
    """Refuse strides whose number is not the number of levels minus one.

    Raises:
        ValueError: The number is another one.
    """
    if strides is not None and len(strides) != levels - 1:
        raise ValueError(f"`strides` needs {levels - 1} entries, one between each two levels")
