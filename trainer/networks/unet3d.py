"""The 3D UNet that M&N trains."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class UNet3D(nn.Module):
    """A U-Net: two 3x3x3 convolutions a level, max-pooling, trilinear upsampling, concatenated skips (M&N, A.2).

    The paper's network has five levels; here there are as many as ``channels``.
    """

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
