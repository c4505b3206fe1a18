"""Configurations of students with a transformer as encoder: UNETR and SwinUNETR."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from trainer.monai_modules import UNETR, SwinUNETR
from trainer.network_configs.base import MonaiNetworkConfig, Rate, Triple
from trainer.recipe import Positive


class UNETRConfig(MonaiNetworkConfig):
    """MONAI's UNETR: a vision transformer over 16-voxel cubes. Its position embedding is for one patch size.

    Attributes:
        feature_size: Number of channels of the finest level of the decoder.
        hidden_size, mlp_dim, heads: Dimensions and number of heads of the transformer.
        position: Layer that makes a token of a cube: a convolution or a perceptron.
        dropout: Probability of dropout.
    """

    kind: Literal["unetr"]
    network_class: ClassVar[type[nn.Module]] = UNETR
    any_size: ClassVar[bool] = False
    layers: ClassVar[dict[str, str]] = {"deepest": "vit.norm", "features": "out", "compared": "encoder4"}
    encoders: ClassVar[tuple[str, ...]] = ("vit", "encoder1", "encoder2", "encoder3", "encoder4")
    feature_size: Positive = 16
    hidden_size: Positive = 768
    mlp_dim: Positive = 3072
    heads: Positive = 12
    position: Literal["conv", "perceptron"] = "conv"
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _heads_divide(self) -> UNETRConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"`hidden_size` {self.hidden_size} is not a multiple of `heads` {self.heads}")
        return self

    def divisor(self) -> Triple:
        """Return the side of the transformer's cubes, 16 voxels."""
        return (16, 16, 16)

    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """See :meth:`MonaiNetworkConfig.arguments`."""
        return {
            "in_channels": inputs,
            "out_channels": outputs,
            "img_size": patch,
            "feature_size": self.feature_size,
            "hidden_size": self.hidden_size,
            "mlp_dim": self.mlp_dim,
            "num_heads": self.heads,
            "proj_type": self.position,
            "dropout_rate": self.dropout,
        }

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """See :meth:`NetworkConfig.decoder`."""
        return tuple((f"decoder{level + 2}", self.feature_size * 2**level) for level in (1, 2, 3))


class SwinUNETRConfig(MonaiNetworkConfig):
    """MONAI's SwinUNETR, M&N's other 3D network (table 4, feature size 36). Its graph takes one window size only.

    Attributes:
        feature_size: Number of channels of the finest level.
        checkpointing: If True, training takes less memory and more time.
    """

    kind: Literal["swinunetr"]
    network_class: ClassVar[type[nn.Module]] = SwinUNETR
    any_size: ClassVar[bool] = False
    layers: ClassVar[dict[str, str]] = {"deepest": "encoder10", "features": "out"}
    encoders: ClassVar[tuple[str, ...]] = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
    feature_size: Annotated[int, Field(ge=12, multiple_of=12)] = 36
    checkpointing: bool = False

    def divisor(self) -> Triple:
        """Return 32 for each axis: patches of two voxels, halved four times."""
        return (32, 32, 32)

    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """See :meth:`MonaiNetworkConfig.arguments`."""
        return {
            "in_channels": inputs,
            "out_channels": outputs,
            "feature_size": self.feature_size,
            "use_checkpoint": self.checkpointing,
            "spatial_dims": 3,
        }

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """See :meth:`NetworkConfig.decoder`."""
        return tuple((f"decoder{level + 1}", self.feature_size * 2 ** (level - 1)) for level in (1, 2, 3, 4))
