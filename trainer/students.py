"""The 3D networks that are kept. A recipe's ``student`` section says which, and its settings.

A student turns patches (N, inputs, X, Y, Z) into logits (N, outputs, X, Y, Z).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from torch import nn

from semiseg.bundle.bundle import sentence_of
from trainer.errors import RecipeError
from trainer.networks.outside import build_outside, find_outside
from trainer.networks.paper_unet import PaperUNet
from trainer.networks.vnet import ResNetVNet, VNet
from trainer.recipe import Positive, Section

Triple = tuple[int, int, int]
Stride = Annotated[int, Field(ge=1, le=4)]
Layer = Literal["deepest", "features"]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Student(Section):
    """What every student's section offers.

    Attributes:
        any_size: whether one set of weights takes patches of several sizes.
        layers: names of modules: what ``deepest`` returns are the coarsest features; what goes into ``features`` are
            the last ones before the logits.
    """

    any_size: ClassVar[bool] = True
    layers: ClassVar[dict[str, str]] = {}

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

    def layer(self, name: Layer) -> str:
        """The name of the module ``name`` in the network.

        Raises:
            RecipeError: nobody says which it is.
        """
        found = self._layers().get(name)
        if found is None:
            raise RecipeError(
                f"The student does not say which of its modules is `{name}`, which this method looks into; name it in "
                "`student.modules`, or take another student."
            )
        return found

    def _layers(self) -> dict[str, str]:
        return self.layers


class UNetStudent(Student):
    """MONAI's UNet: strided convolutions, instance norm, residual units. ``channels`` per level, coarsest last.

    ``strides`` between levels are 2, or three numbers a level for scans with thick slices ([2, 2, 1] keeps Z).
    """

    kind: Literal["unet"]
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = (16, 32, 64, 128)
    strides: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    residual_units: Annotated[int, Field(ge=0)] = 2
    norm: Literal["instance", "batch"] = "instance"
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _one_stride_a_step(self) -> UNetStudent:
        _check_strides(self.strides, len(self.channels))
        return self

    def divisor(self) -> Triple:
        """The product of the strides."""
        return _product(self.strides, len(self.channels))

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        return UNet(
            spatial_dims=3,
            in_channels=inputs,
            out_channels=outputs,
            channels=self.channels,
            strides=self.strides or (2,) * (len(self.channels) - 1),
            num_res_units=self.residual_units,
            norm=self.norm,
            dropout=self.dropout,
        )

    def _layers(self) -> dict[str, str]:
        return {"deepest": "model" + ".1.submodule" * (len(self.channels) - 1), "features": "model.2"}


class PaperUNetStudent(Student):
    """The 3D UNet of M&N: 25,884,546 parameters at the default channels, one input channel and two classes."""

    kind: Literal["unet3d"]
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = (32, 64, 128, 256, 512)

    def divisor(self) -> Triple:
        """Halved between levels."""
        return _product(None, len(self.channels))

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        return PaperUNet(inputs, outputs, self.channels)

    def _layers(self) -> dict[str, str]:
        return {"deepest": f"down.{len(self.channels) - 1}", "features": "head"}


class VNetStudent(Student):
    """V-Net of the mean-teacher family: 9,448,866 parameters (1 channel, 2 classes). See :mod:`trainer.networks.vnet`.

    ``resnet_vnet`` has a ResNet-34 as encoder (Dual Networks): 17,930,354 parameters.
    """

    kind: Literal["vnet", "resnet_vnet"]
    norm: Literal["batch", "instance"] = "batch"
    dropout: Rate = 0.0
    layers: ClassVar[dict[str, str]] = {"deepest": "deepest", "features": "head"}

    def divisor(self) -> Triple:
        """Five levels."""
        return (16, 16, 16)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        network = VNet if self.kind == "vnet" else ResNetVNet
        return network(inputs, outputs, self.norm, self.dropout)


class SegResNetStudent(Student):
    """MONAI's SegResNet (Myronenko 2018 without the variational branch): group norm, residual blocks."""

    kind: Literal["segresnet"]
    filters: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    blocks_down: Annotated[tuple[Positive, ...], Field(min_length=2)] = (1, 2, 2, 4)
    blocks_up: tuple[Positive, ...] | None = None
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _as_many_up(self) -> SegResNetStudent:
        if self.blocks_up is not None and len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(f"`blocks_up` needs {len(self.blocks_down) - 1} entries, one less than `blocks_down`")
        return self

    def divisor(self) -> Triple:
        """Halved between levels."""
        return _product(None, len(self.blocks_down))

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        return SegResNet(
            spatial_dims=3,
            init_filters=self.filters,
            in_channels=inputs,
            out_channels=outputs,
            dropout_prob=self.dropout or None,
            blocks_down=self.blocks_down,
            blocks_up=self.blocks_up or (1,) * (len(self.blocks_down) - 1),
        )

    def _layers(self) -> dict[str, str]:
        return {"deepest": f"down_layers.{len(self.blocks_down) - 1}", "features": "conv_final"}


class DynUNetStudent(Student):
    """MONAI's DynUNet, nnU-Net's network: kernels and strides per level and axis, without deep supervision."""

    kind: Literal["dynunet"]
    channels: Annotated[tuple[Positive, ...], Field(min_length=3)] = (32, 64, 128, 256, 320)
    strides: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    kernels: tuple[tuple[Stride, Stride, Stride], ...] | None = None
    residual: bool = False
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> DynUNetStudent:
        _check_strides(self.strides, len(self.channels))
        if self.kernels is not None and len(self.kernels) != len(self.channels):
            raise ValueError(f"`kernels` needs {len(self.channels)} entries, one for each level")
        return self

    def divisor(self) -> Triple:
        """The product of the strides."""
        return _product(self.strides, len(self.channels))

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        strides = self.strides or ((2, 2, 2),) * (len(self.channels) - 1)
        return DynUNet(
            spatial_dims=3,
            in_channels=inputs,
            out_channels=outputs,
            kernel_size=self.kernels or ((3, 3, 3),) * len(self.channels),
            strides=((1, 1, 1), *strides),
            upsample_kernel_size=strides,
            filters=self.channels,
            dropout=self.dropout or None,
            res_block=self.residual,
        )

    def _layers(self) -> dict[str, str]:
        return {"deepest": "bottleneck", "features": "output_block"}


class UNETRStudent(Student):
    """MONAI's UNETR: a vision transformer over 16-voxel cubes. Its positions are those of one patch size."""

    kind: Literal["unetr"]
    any_size: ClassVar[bool] = False
    layers: ClassVar[dict[str, str]] = {"deepest": "vit.norm", "features": "out"}
    feature_size: Positive = 16
    hidden_size: Positive = 768
    mlp_dim: Positive = 3072
    heads: Positive = 12
    position: Literal["conv", "perceptron"] = "conv"
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _heads_divide(self) -> UNETRStudent:
        if self.hidden_size % self.heads:
            raise ValueError(f"`hidden_size` {self.hidden_size} is not a multiple of `heads` {self.heads}")
        return self

    def divisor(self) -> Triple:
        """The transformer's cubes."""
        return (16, 16, 16)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        return UNETR(
            in_channels=inputs,
            out_channels=outputs,
            img_size=patch,
            feature_size=self.feature_size,
            hidden_size=self.hidden_size,
            mlp_dim=self.mlp_dim,
            num_heads=self.heads,
            proj_type=self.position,
            dropout_rate=self.dropout,
        )


class SwinUNETRStudent(Student):
    """MONAI's SwinUNETR, M&N's other 3D network (table 4, feature size 36). Its graph takes one window size only."""

    kind: Literal["swinunetr"]
    any_size: ClassVar[bool] = False
    layers: ClassVar[dict[str, str]] = {"deepest": "encoder10", "features": "out"}
    feature_size: Annotated[int, Field(ge=12, multiple_of=12)] = 36
    checkpointing: bool = False

    def divisor(self) -> Triple:
        """Patches of two voxels, halved four times."""
        return (32, 32, 32)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`; ``checkpointing`` trades time for memory in training."""
        return SwinUNETR(
            in_channels=inputs,
            out_channels=outputs,
            feature_size=self.feature_size,
            use_checkpoint=self.checkpointing,
            spatial_dims=3,
        )


class OutsideStudent(Student):
    """A 3D network from anywhere: ``function`` is a ``package.module:function``.

    It is called as ``function(inputs, outputs, **settings)`` and returns a module. ``several_sizes`` and ``sides``
    promise what the module takes: patches of any size, whose sides are multiples of ``sides``. ``modules`` names those
    that some methods look into (see :class:`Student`).
    """

    kind: Literal["outside"]
    function: str
    settings: dict[str, Any] = Field(default_factory=dict)
    sides: tuple[Positive, Positive, Positive] = (1, 1, 1)
    several_sizes: bool = False
    modules: dict[Layer, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_found(self) -> OutsideStudent:
        find_outside(self.function)
        return self

    @property
    def takes_any_size(self) -> bool:
        """As promised."""
        return self.several_sizes

    def divisor(self) -> Triple:
        """As promised."""
        return self.sides

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`; also tries the network on one patch."""
        network = build_outside(self.function, inputs, outputs, self.settings)
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
        for role, name in self.modules.items():
            try:
                network.get_submodule(name)
            except AttributeError:
                raise RecipeError(f"The student {self.function} has no module {name!r} ({role}).") from None
        return network.train()

    def _layers(self) -> dict[str, str]:
        return {str(name): module for name, module in self.modules.items()}


AnyStudent = (
    UNetStudent
    | PaperUNetStudent
    | VNetStudent
    | SegResNetStudent
    | DynUNetStudent
    | UNETRStudent
    | SwinUNETRStudent
    | OutsideStudent
)
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


def parameters_of(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def _product(strides: tuple[Triple, ...] | None, levels: int) -> Triple:
    if strides is None:
        return (2 ** (levels - 1),) * 3
    x, y, z = (math.prod(stride[axis] for stride in strides) for axis in range(3))
    return (x, y, z)


def _check_strides(strides: tuple[Triple, ...] | None, levels: int) -> None:
    if strides is not None and len(strides) != levels - 1:
        raise ValueError(f"`strides` needs {levels - 1} entries, one between each two levels")
