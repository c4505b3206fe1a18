"""A U-Net with SqueezeNet 1.1 as encoder, plugged into M&N as its 2D network from outside.

    PYTHONPATH=docs/results/mn_weights semiseg train ... --method mn --set 'methods.mn.teacher={kind: outside,
        function: "squeezenet:build", finetune: whole, enlarge: 2, weights: {folder: WEIGHTS, licence: mit}}'

SqueezeNet: Iandola et al. 2016, arXiv 1602.07360, version 1.1 of the authors' repository. ``weights`` is a folder with
``squeezenet1_1_imagenet_features.npz``: the tensors of its feature layers by their usual PyTorch names, trained on
ImageNet with values of 0..255, while the scans here have a standard deviation of one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FILE = "squeezenet1_1_imagenet_features.npz"
SCALE = 60.0  # of the first layer: about the standard deviation of the values that it was trained on
WIDTHS = (64, 128, 256, 512)  # of the features kept, at 1/2, 1/4, 1/8 and 1/16 of the size


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 2 expanded, H, W)."""
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))], dim=1)


class SqueezeUNet(nn.Module):
    """Encoder features at four sizes, a small decoder."""

    def __init__(self, outputs: int) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(), pool()]
        layers += [Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()]
        layers += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
        self.features = nn.ModuleList(layers)
        self.kept = (1, 4, 7, 12)  # after which layers features are kept
        widths = (64, 48, 32)  # of the decoder, coarsest first
        above = (WIDTHS[-1], *widths[:-1])
        self.merge = nn.ModuleList(
            _merge(a + skip, width) for a, skip, width in zip(above, WIDTHS[-2::-1], widths, strict=True)
        )
        self.last = _merge(widths[-1] + 3, 16)
        self.head = nn.Conv2d(16, outputs, 1)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) -> logits (N, outputs, H, W)."""
        x = image = slices.expand(-1, 3, -1, -1)
        skips: list[Tensor] = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.kept:
                skips.append(x)
        x = skips.pop()
        for merge in self.merge:
            skip = skips.pop()
            x = merge(torch.cat([_to(x, skip), skip], dim=1))
        logits: Tensor = self.head(self.last(torch.cat([_to(x, image), image], dim=1)))
        return logits


def build(inputs: int, outputs: int, weights: Path | None = None) -> nn.Module:
    """The network for slices of one channel, from scratch or from ImageNet."""
    if inputs != 1:
        raise ValueError("this 2D network takes scans of one channel")
    network = SqueezeUNet(outputs)
    if weights is not None:
        with np.load(Path(weights) / FILE) as stored:
            tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
        tensors["features.0.weight"] = tensors["features.0.weight"] * SCALE
        missing, unexpected = network.load_state_dict(tensors, strict=False)
        if unexpected or any(name.startswith("features.") for name in missing):
            raise ValueError(f"{FILE} does not hold the feature layers of SqueezeNet 1.1")
    return network


def _merge(inputs: int, outputs: int) -> nn.Sequential:
    """A pointwise convolution to few channels, then a 3x3 one: a decoder that costs no more than the encoder."""
    layers: list[nn.Module] = []
    for width, size in ((inputs, 1), (outputs, 3)):
        layers += [nn.Conv2d(width, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _to(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
