"""Configurations of the 3D networks that a run can keep, as in the ``student`` section of a recipe.

Each network maps patches (N, inputs, X, Y, Z) to logits (N, outputs, X, Y, Z).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from semiseg.errors import validation_message
from trainer.errors import RecipeError
from trainer.network_configs.base import NetworkConfig, Triple
from trainer.network_configs.convolutional import DynUNetConfig, SegResNetConfig, UNet3DConfig, UNetConfig, VNetConfig
from trainer.network_configs.custom import CustomNetworkConfig
from trainer.network_configs.slicewise import MosaicConfig, SlicewiseConfig
from trainer.network_configs.transformers import SwinUNETRConfig, UNETRConfig
from trainer.networks.ensemble import NetworkEnsemble
from trainer.recipe_files import rename_kinds

SingleNetworkConfig = (
    UNetConfig
    | UNet3DConfig
    | VNetConfig
    | SegResNetConfig
    | DynUNetConfig
    | UNETRConfig
    | SwinUNETRConfig
    | CustomNetworkConfig
)


class EnsembleConfig(NetworkConfig):
    """Several networks whose result is the mean of their probabilities.

    Attributes:
        members: Configurations of the networks.
        regions: True if segments overlap, so that probabilities are sigmoids instead of a softmax.
    """

    kind: Literal["mean"]
    members: Annotated[tuple[Annotated[SingleNetworkConfig, Field(discriminator="kind")], ...], Field(min_length=2)]
    regions: bool = False

    @property
    def takes_any_size(self) -> bool:
        """True if all members take patches of any size."""
        return all(member.takes_any_size for member in self.members)

    def divisor(self) -> Triple:
        """Return the divisor that suits all members."""
        return patch_divisor(self.members)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        return NetworkEnsemble((m.build(inputs, outputs, patch) for m in self.members), regions=self.regions)


AnyNetworkConfig = SingleNetworkConfig | EnsembleConfig | SlicewiseConfig | MosaicConfig
_STUDENT: TypeAdapter[AnyNetworkConfig] = TypeAdapter(Annotated[AnyNetworkConfig, Field(discriminator="kind")])


def parse_network_config(section: dict[str, Any], where: str = "student") -> AnyNetworkConfig:
    """Validate a recipe's ``student`` section, or the section of another 3D network.

    Args:
        section: The section.
        where: Key of the section, for errors.

    Raises:
        RecipeError: The kind or a setting is unknown, or a value is invalid.
    """
    try:
        return _STUDENT.validate_python(rename_kinds(section, f"the recipe, {where}", student=True))
    except ValidationError as error:
        raise RecipeError(f"In the recipe, {where}: {validation_message(error)}.") from None


def patch_divisor(students: Iterable[NetworkConfig]) -> Triple:
    """Return the numbers of which a patch's sides have to be multiples to suit all the students."""
    x, y, z = (math.lcm(*sides) for sides in zip(*(s.divisor() for s in students), strict=True))
    return (x, y, z)


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in network.parameters())
