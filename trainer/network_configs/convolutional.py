"""Configurations of convolutional students: UNet, V-Net, SegResNet and DynUNet."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from trainer.monai_modules import DynUNet, SegResNet, UNet
from trainer.network_configs.base import (
    MonaiNetworkConfig,
    NetworkConfig,
    Rate,
    Stride,
    Triple,
    check_strides,
    total_stride,
)
from trainer.networks.unet3d import UNet3D
from trainer.networks.vnet import UPSAMPLINGS, WIDTHS, ResNetVNet, Upsampling, VNet
from trainer.recipe import Positive


class UNetConfig(MonaiNetworkConfig):
    """MONAI's UNet: strided convolutions, instance norm, residual units.

    Attributes:
        channels: Number of channels of each level, the coarsest last.
        strides: Strides between levels, three numbers each, for scans with thick slices ([2, 2, 1] keeps Z); 2 by
            default.
        residual_units: Number of convolutions of each level that a shortcut bypasses; 0 makes a network without
            shortcuts.
        norm: Kind of normalisation: instance or batch norm.
        dropout: Probability of dropout.
    """

    kind: Literal["unet"]
    network_class: ClassVar[type[nn.Module]] = UNet
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = (16, 32, 64, 128)
    strides: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    residual_units: Annotated[int, Field(ge=0)] = 2
    norm: Literal["instance", "batch"] = "instance"
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _one_stride_a_step(self) -> UNetConfig:
        check_strides(self.strides, len(self.channels))
        return self

    def divisor(self) -> Triple:
        """Return the product of the strides."""
        return total_stride(self.strides, len(self.channels))

    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """See :meth:`MonaiNetworkConfig.arguments`."""
        return {
            "spatial_dims": 3,
            "in_channels": inputs,
            "out_channels": outputs,
            "channels": self.channels,
            "strides": self.strides or (2,) * (len(self.channels) - 1),
            "num_res_units": self.residual_units,
            "norm": self.norm,
            "dropout": self.dropout,
        }

    def _layers(self) -> dict[str, str]:
        return {"deepest": "model" + ".1.submodule" * (len(self.channels) - 1), "features": "model.2"}

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Return the modules below each skip connection, without the coarsest level."""
        levels = range(1, len(self.channels) - 1)
        return tuple(("model" + ".1.submodule" * level, self.channels[level - 1]) for level in levels)

    def encoder(self) -> tuple[str, ...]:
        """Return the first module of each level, and the coarsest level."""
        levels = ["model" + ".1.submodule" * level for level in range(len(self.channels))]
        return (*(f"{level}.0" for level in levels[:-1]), levels[-1])


class UNet3DConfig(NetworkConfig):
    """The 3D UNet of M&N: 25,884,546 parameters at the default channels, one input channel and two classes.

    Attributes:
        channels: Number of channels of each level, the coarsest last.
    """

    kind: Literal["unet3d"]
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = (32, 64, 128, 256, 512)

    def divisor(self) -> Triple:
        """Return 2 to the power of the number of halvings."""
        return total_stride(None, len(self.channels))

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        return UNet3D(inputs, outputs, self.channels)

    def _layers(self) -> dict[str, str]:
        return {"deepest": f"down.{len(self.channels) - 1}", "features": "head"}

    def encoder(self) -> tuple[str, ...]:
        """See :meth:`NetworkConfig.encoder`."""
        return ("down",)

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Return the pairs of convolutions after each skip connection, without the finest one."""
        last = len(self.channels) - 2
        return tuple((f"merge.{last - level}", self.channels[level]) for level in range(1, last + 1))


class VNetConfig(NetworkConfig):
    """V-Net of the mean-teacher family: 9,448,866 parameters (1 channel, 2 classes). See :mod:`trainer.networks.vnet`.

    Attributes:
        kind: ``resnet_vnet`` has a ResNet-34 as encoder (Dual Networks): 17,930,354 parameters.
        norm: Kind of normalisation: batch norm, as in the papers, or instance norm.
        dropout: Probability of dropout.
        upsampling: Layers with which the decoder doubles the size: a ``transposed`` convolution, as in V-Net, or
            ``trilinear`` or ``nearest`` interpolation and a 3x3x3 convolution, as in MC-Net+'s further decoders.
    """

    kind: Literal["vnet", "resnet_vnet"]
    norm: Literal["batch", "instance"] = "batch"
    dropout: Rate = 0.0
    upsampling: Upsampling = "transposed"
    layers: ClassVar[dict[str, str]] = {"deepest": "deepest", "features": "head"}
    encoders: ClassVar[tuple[str, ...]] = ("stem", "down", "deepest")

    def divisor(self) -> Triple:
        """Return 16 for each axis, since there are five levels."""
        return (16, 16, 16)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        network = VNet if self.kind == "vnet" else ResNetVNet
        return network(inputs, outputs, self.norm, self.dropout, self.upsampling)

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Return the stages after each skip connection, without the finest one."""
        return tuple((f"decoder.merge.{3 - level}", WIDTHS[level]) for level in range(1, 4))

    def decoders(self) -> tuple[NetworkConfig, ...]:
        """Return one for each kind of upsampling, this configuration's own first (MC-Net+, Wu et al. 2022)."""
        others = [way for way in UPSAMPLINGS if way != self.upsampling]
        return tuple(self.model_copy(update={"upsampling": way}) for way in (self.upsampling, *others))


class SegResNetConfig(MonaiNetworkConfig):
    """MONAI's SegResNet (Myronenko 2018 without the variational branch): group norm, residual blocks.

    Attributes:
        filters: Number of channels of the finest level; it doubles at each coarser level.
        blocks_down, blocks_up: Numbers of residual blocks of each level of the encoder, and of the decoder (by default
            one each).
        dropout: Probability of dropout.
    """

    kind: Literal["segresnet"]
    network_class: ClassVar[type[nn.Module]] = SegResNet
    encoders: ClassVar[tuple[str, ...]] = ("convInit", "down_layers")
    filters: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    blocks_down: Annotated[tuple[Positive, ...], Field(min_length=2)] = (1, 2, 2, 4)
    blocks_up: tuple[Positive, ...] | None = None
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _as_many_up(self) -> SegResNetConfig:
        if self.blocks_up is not None and len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(f"`blocks_up` needs {len(self.blocks_down) - 1} entries, one less than `blocks_down`")
        return self

    def divisor(self) -> Triple:
        """Return 2 to the power of the number of halvings."""
        return total_stride(None, len(self.blocks_down))

    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """See :meth:`MonaiNetworkConfig.arguments`."""
        return {
            "spatial_dims": 3,
            "init_filters": self.filters,
            "in_channels": inputs,
            "out_channels": outputs,
            "dropout_prob": self.dropout or None,
            "blocks_down": self.blocks_down,
            "blocks_up": self.blocks_up or (1,) * (len(self.blocks_down) - 1),
        }

    def _layers(self) -> dict[str, str]:
        return {"deepest": f"down_layers.{len(self.blocks_down) - 1}", "features": "conv_final"}

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Return the residual blocks of each level, without the finest one."""
        last = len(self.blocks_down) - 2
        return tuple((f"up_layers.{last - level}", self.filters * 2**level) for level in range(1, last + 1))


class DynUNetConfig(MonaiNetworkConfig):
    """MONAI's DynUNet, nnU-Net's network, without deep supervision.

    Attributes:
        channels: Number of channels of each level, the coarsest last.
        strides: Strides between levels, three numbers each; 2 by default.
        kernels: Kernel size of each level, three numbers each; 3 by default.
        residual: If True, blocks have a shortcut.
        dropout: Probability of dropout.
    """

    kind: Literal["dynunet"]
    network_class: ClassVar[type[nn.Module]] = DynUNet
    encoders: ClassVar[tuple[str, ...]] = ("input_block", "downsamples", "bottleneck")
    channels: Annotated[tuple[Positive, ...], Field(min_length=3)] = (32, 64, 128, 256, 320)
    strides: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    kernels: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    residual: bool = False
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> DynUNetConfig:
        check_strides(self.strides, len(self.channels))
        if self.kernels is not None and len(self.kernels) != len(self.channels):
            raise ValueError(f"`kernels` needs {len(self.channels)} entries, one for each level")
        return self

    def divisor(self) -> Triple:
        """Return the product of the strides."""
        return total_stride(self.strides, len(self.channels))

    def arguments(self, inputs: int, outputs: int, patch: Triple) -> dict[str, Any]:
        """See :meth:`MonaiNetworkConfig.arguments`."""
        strides = self.strides or ((2, 2, 2),) * (len(self.channels) - 1)
        return {
            "spatial_dims": 3,
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": self.kernels or ((3, 3, 3),) * len(self.channels),
            "strides": ((1, 1, 1), *strides),
            "upsample_kernel_size": strides,
            "filters": self.channels,
            "dropout": self.dropout or None,
            "res_block": self.residual,
        }

    def decoder(self) -> tuple[tuple[str, int], ...]:
        """Return the upsampling blocks, without the last one."""
        count = len(self.channels) - 1
        return tuple((f"upsamples.{count - 1 - level}", self.channels[level]) for level in range(1, count))

    def _layers(self) -> dict[str, str]:
        return {"deepest": "bottleneck", "features": "output_block"}
