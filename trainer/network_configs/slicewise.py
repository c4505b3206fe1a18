"""Configurations of 2D networks that segment volumes: one slice by slice, and SAM on mosaics of slices."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator
from torch import nn

from trainer.network_configs.base import NetworkConfig, Triple
from trainer.networks.mosaic_segmenter import MosaicSegmenter
from trainer.networks.slicewise import SlicewiseNetwork
from trainer.recipe import Positive
from trainer.sam import SamSettings, build_sam
from trainer.slice_mosaic import make_slice_mosaic
from trainer.teachers import TeacherConfig, build_teacher

Axis = Literal[0, 1, 2]


class SlicewiseConfig(NetworkConfig):
    """A 2D network that segments each slice by itself. The method `mn_2d` trains one.

    Attributes:
        network: The 2D network.
        axis: Axis along which volumes are sliced.
        chunk: Number of slices per call of the network.
    """

    kind: Literal["sliced"]
    any_size: ClassVar[bool] = False
    network: TeacherConfig = TeacherConfig()
    axis: Axis = 2
    chunk: Positive = 64

    @model_validator(mode="after")
    def _no_weights(self) -> SlicewiseConfig:
        if self.network.weights is not None:
            raise ValueError("a `sliced` student has no pretrained weights; the method `mn_2d` begins with some")
        return self

    def divisor(self) -> Triple:
        """Return 1 for each axis."""
        return (1, 1, 1)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        return SlicewiseNetwork(build_teacher(self.network, inputs, outputs), self.axis, self.chunk)


class MosaicConfig(NetworkConfig):
    """SAM on mosaics of a patch's slices. The method `cfr_ft` trains one.

    Attributes:
        sam: The foundation model.
        axis: Axis along which volumes are sliced.
        grid: Number of cells per side of a mosaic; with None, all slices are in one mosaic at their own size.
    """

    kind: Literal["slice_mosaic"]
    any_size: ClassVar[bool] = False
    sam: SamSettings = SamSettings()
    axis: Axis = 2
    grid: Positive | None = None

    @model_validator(mode="after")
    def _no_weights(self) -> MosaicConfig:
        if self.sam.weights is not None:
            raise ValueError("a `slice_mosaic` student has no pretrained weights; the method `cfr_ft` begins with some")
        return self

    def divisor(self) -> Triple:
        """Return 1 for each axis; a patch's slices have to fit in a mosaic."""
        return (1, 1, 1)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`NetworkConfig.build`."""
        canvas = make_slice_mosaic(patch, self.axis, self.sam.image_side(), self.grid)
        return MosaicSegmenter(build_sam(self.sam, inputs, outputs), canvas)
