"""V-Net of the semi-supervised papers, and the ResNet-34 V-Net of Dual Networks.

The V-Net of the papers of the mean-teacher family (UA-MT, ACMT, MagicNet, CFR) has no residual sums inside a stage, and
skip connections by addition; MONAI's VNet, with its 5x5x5 residual blocks, is another network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "instance"]
Upsampling = Literal["transposed", "trilinear", "nearest"]
UPSAMPLINGS: tuple[Upsampling, ...] = ("transposed", "trilinear", "nearest")
WIDTHS = (16, 32, 64, 128, 256)


class _VNet(nn.Module):
    """An encoder of five levels and V-Net's decoder.

    ``deepest`` returns the features at 1/16 of the size, ``decoder`` those (16 channels, full size) that the 1x1x1
    ``head`` turns into logits.
    """

    def __init__(
        self,
        stem: nn.Module,
        down: Iterable[nn.Module],
        deepest: nn.Module,
        outputs: int,
        norm: Norm,
        dropout: float,
        upsampling: Upsampling,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.down = nn.ModuleList(down)
        self.deepest = deepest
        self.decoder = VNetDecoder(norm, upsampling)
        self.head = nn.Sequential(nn.Dropout3d(dropout), nn.Conv3d(WIDTHS[0], outputs, kernel_size=1))
        initialise_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, X, Y, Z) -> logits (N, outputs, X, Y, Z); sides are multiples of 16."""
        levels = [self.stem(x)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        levels[-1] = self.deepest(levels[-1])
        logits: Tensor = self.head(self.decoder(levels))
        return logits


class VNet(_VNet):
    """V-Net with 1, 2, 3, 3, 3 convolutions in the five levels of the encoder and 3, 3, 2, 1 in those of the decoder.

    It has 9,448,866 parameters for 1 channel and 2 classes.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm: Norm = "batch",
        dropout: float = 0.0,
        upsampling: Upsampling = "transposed",
    ) -> None:
        down = (
            nn.Sequential(_halve(a, b, norm), _stage(b, b, count, norm))
            for (a, b), count in zip(itertools.pairwise(WIDTHS), (2, 3, 3, 3), strict=True)
        )
        stem = _stage(inputs, WIDTHS[0], 1, norm)
        super().__init__(stem, down, nn.Dropout3d(dropout), outputs, norm, dropout, upsampling)


class ResNetVNet(_VNet):
    """A 3D ResNet-34, whose stem keeps the size, as encoder, and V-Net's decoder.

    It has 17,930,354 parameters for 1 channel and 2 classes. Dropout is before the head only.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm: Norm = "batch",
        dropout: float = 0.0,
        upsampling: Upsampling = "transposed",
    ) -> None:
        stem = nn.Sequential(
            nn.Conv3d(inputs, WIDTHS[0], kernel_size=7, padding=3, bias=False), _norm(norm, WIDTHS[0]), nn.ReLU()
        )
        down = (
            nn.Sequential(*(_Residual(a if k == 0 else b, b, 2 if k == 0 else 1, norm) for k in range(count)))
            for (a, b), count in zip(itertools.pairwise(WIDTHS), (3, 4, 6, 3), strict=True)
        )
        super().__init__(stem, down, nn.Identity(), outputs, norm, dropout, upsampling)


class VNetDecoder(nn.Module):
    """The decoder: features of five levels, finest first, to 16 channels at full size; skip connections by addition."""

    def __init__(self, norm: Norm, upsampling: Upsampling = "transposed") -> None:
        super().__init__()
        steps = list(itertools.pairwise(reversed(WIDTHS)))
        self.up = nn.ModuleList(_double(a, b, norm, upsampling) for a, b in steps)
        self.merge = nn.ModuleList(_stage(b, b, count, norm) for (_, b), count in zip(steps, (3, 3, 2, 1), strict=True))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Features of 16, 32, 64, 128 and 256 channels -> (N, 16, X, Y, Z)."""
        x = levels[-1]
        for up, merge, skip in zip(self.up, self.merge, reversed(levels[:-1]), strict=True):
            x = merge(up(x) + skip)
        return x


class _Residual(nn.Module):
    """Two 3x3x3 convolutions with a shortcut (He et al. 2016, the basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            _norm(norm, outputs),
            nn.ReLU(),
            nn.Conv3d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            _norm(norm, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, kernel_size=1, stride=stride, bias=False), _norm(norm, outputs)
            )
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, X, Y, Z) -> (N, outputs, X / stride, Y / stride, Z / stride)."""
        out: Tensor = self.last(self.body(x) + self.shortcut(x))
        return out


def initialise_weights(network: nn.Module) -> None:
    """Initialise convolutions by Kaiming's normal distribution, batch norms with scale 1, as in both papers' code."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm3d(channels) if kind == "batch" else nn.InstanceNorm3d(channels)


def _stage(inputs: int, outputs: int, count: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(count):
        layers += [nn.Conv3d(inputs if k == 0 else outputs, outputs, kernel_size=3, padding=1), _norm(norm, outputs)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _halve(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, kernel_size=2, stride=2), _norm(norm, outputs), nn.ReLU())


def _double(inputs: int, outputs: int, norm: Norm, way: Upsampling) -> nn.Sequential:
    layers: list[nn.Module] = [nn.ConvTranspose3d(inputs, outputs, kernel_size=2, stride=2)]
    if way != "transposed":
        corners = True if way == "trilinear" else None
        enlarge = nn.Upsample(scale_factor=2, mode=way, align_corners=corners)
        layers = [enlarge, nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)]
    return nn.Sequential(*layers, _norm(norm, outputs), nn.ReLU())
