"""The 3D networks that are kept. ``build_student`` makes one from a recipe's ``student`` section."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from semiseg.bundle.bundle import sentence_of
from trainer.errors import RecipeError
from trainer.recipe import Positive, Section


class UNetStudent(Section):
    """MONAI's UNet: strided convolutions, instance norm, residual units. ``channels`` per level, coarsest last."""

    kind: Literal["unet"]
    any_size: ClassVar[bool] = True
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = (16, 32, 64, 128)
    residual_units: Annotated[int, Field(ge=0)] = 2
    norm: Literal["instance", "batch"] = "instance"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def divisor(self) -> int:
        """A patch side must be a multiple of this."""
        return int(2 ** (len(self.channels) - 1))

    def build(self, inputs: int, outputs: int) -> nn.Module:
        """A network from (N, inputs, X, Y, Z) to logits (N, outputs, X, Y, Z)."""
        return UNet(
            spatial_dims=3,
            in_channels=inputs,
            out_channels=outputs,
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
            num_res_units=self.residual_units,
            norm=self.norm,
            dropout=self.dropout,
        )


class PaperUNetStudent(Section):
    """The 3D UNet of M&N: 25,884,546 parameters at the default channels, one input channel and two classes."""

    kind: Literal["unet3d"]
    any_size: ClassVar[bool] = True
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = (32, 64, 128, 256, 512)

    def divisor(self) -> int:
        """A patch side must be a multiple of this."""
        return int(2 ** (len(self.channels) - 1))

    def build(self, inputs: int, outputs: int) -> nn.Module:
        """A network from (N, inputs, X, Y, Z) to logits (N, outputs, X, Y, Z)."""
        return PaperUNet(inputs, outputs, self.channels)


class SwinUNETRStudent(Section):
    """MONAI's SwinUNETR, M&N's other 3D network (table 4, feature size 36). Its graph takes one window size only."""

    kind: Literal["swinunetr"]
    any_size: ClassVar[bool] = False
    feature_size: Annotated[int, Field(ge=12, multiple_of=12)] = 36
    checkpointing: bool = False

    def divisor(self) -> int:
        """A patch side must be a multiple of this."""
        return 32

    def build(self, inputs: int, outputs: int) -> nn.Module:
        """See :meth:`UNetStudent.build`; ``checkpointing`` trades time for memory in training."""
        return SwinUNETR(
            in_channels=inputs,
            out_channels=outputs,
            feature_size=self.feature_size,
            use_checkpoint=self.checkpointing,
            spatial_dims=3,
        )


AnyStudent = UNetStudent | PaperUNetStudent | SwinUNETRStudent
_STUDENT: TypeAdapter[AnyStudent] = TypeAdapter(Annotated[AnyStudent, Field(discriminator="kind")])


def read_student(section: dict[str, Any]) -> AnyStudent:
    """Validate a recipe's ``student`` section.

    Raises:
        RecipeError: an unknown kind or setting.
    """
    try:
        return _STUDENT.validate_python(section)
    except ValidationError as error:
        raise RecipeError(f"In the recipe, student: {sentence_of(error)}.") from None


class PaperUNet(nn.Module):
    """Five levels of two 3x3x3 convolutions, max-pooling, trilinear upsampling, skips by concatenation (M&N, A.2)."""

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        widths = (inputs, *channels)
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b), _conv(b, b)) for a, b in itertools.pairwise(widths))
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.up = nn.ModuleList(_conv(deep, shallow) for deep, shallow in steps)
        self.merge = nn.ModuleList(
            nn.Sequential(_conv(2 * shallow, shallow), _conv(shallow, shallow)) for _, shallow in steps
        )
        self.pool = nn.MaxPool3d(2)
        self.rise = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.head = nn.Conv3d(channels[0], outputs, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, X, Y, Z) -> logits (N, outputs, X, Y, Z)."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(self.rise(x))], dim=1))
        return self.head(x)


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel_size=3, padding=1), nn.InstanceNorm3d(outputs), nn.ReLU(inplace=True)
    )


def parameters_of(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())
