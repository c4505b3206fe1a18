"""What the section of a 3D network says and offers."""

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
    """What every student's section offers.

    Attributes:
        any_size: whether one set of weights takes patches of several sizes.
        layers: names of modules: what ``deepest`` returns are the coarsest features; what goes into ``features`` are
            the last ones before the logits; what ``compared`` returns is what comparative pre-training compares first,
            by default the coarsest features.
        encoders: names of the modules from which decoders take features, those of the skip connections included.
    """

    any_size: ClassVar[bool] = True
    layers: ClassVar[dict[str, str]] = {}
    encoders: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def divisor(self) -> Triple:
        """A patch's sides must be multiples of these."""

    @abstractmethod
    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """A new network with random weights."""

    @property
    def takes_any_size(self) -> bool:
        """Whether windows of other sizes than the patch's may be asked for."""
        return self.any_size

    def module_name(self, name: Layer) -> str:
        """The name of the module ``name`` in the network.

        Raises:
            RecipeError: nobody says which it is.
        """
        layers = self._layers()
        found = layers.get(name) or (layers.get("deepest") if name == "compared" else None)
        if found is None:
            raise RecipeError(
                f"The student does not say which of its modules is `{name}`, which this method looks into; name it in "
                "`student.modules`, or take another student."
            )
        return found

    def encoder(self) -> tuple[str, ...]:
        """The names of the encoder's modules; none when nobody says."""
        return self.encoders

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Names of the modules whose outputs are the decoder's features of each coarser level, finest first, with the
        number of their channels; none when nobody says."""
        return ()

    def decoders(self) -> tuple[NetworkConfig, ...]:
        """This section and others that differ from it in their decoders alone; by default this one alone."""
        return (self,)

    def _layers(self) -> dict[str, str]:
        return self.layers


class MonaiNetworkConfig(NetworkConfig):
    """A student that is one of MONAI's own networks, so that MONAI can build it without us."""

    network_class: ClassVar[type[nn.Module]]

    @abstractmethod
    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """What ``network_class`` is called with."""

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        return self.network_class(**self.arguments(inputs, outputs, patch))


def total_stride(strides: tuple[Triple, ...] | None, levels: int) -> Triple:
    """What a patch is divided by between the first and the last of ``levels``; without strides, by two each."""
    if strides is None:
        return (2 ** (levels - 1),) * 3
    x, y, z = (math.prod(stride[axis] for stride in strides) for axis in range(3))
    return (x, y, z)


def check_strides(strides: tuple[Triple, ...] | None, levels: int) -> None:
    """Refuse strides that are not one between each two levels."""
    if strides is not None and len(strides) != levels - 1:
        raise ValueError(f"`strides` needs {levels - 1} entries, one between each two levels")
