"""The first layer of 2D networks, from a scan's channels to the three of natural images."""

from __future__ import annotations

from torch import Tensor, nn

RGB_CHANNELS = 3


def rgb_input_layer(inputs: int, how: str, colours: int = RGB_CHANNELS) -> nn.Module:
    """Build the layer from a scan's channels to the channels of natural images.

    Args:
        inputs: Number of channels of the scan.
        how: Kind of the layer: ``repeat`` repeats a single channel; ``conv`` is a learned 1x1 convolution. A scan with
            ``colours`` channels is not changed by ``repeat``; any other number needs a convolution.
        colours: Number of channels of the images.
    """
    if how == "conv" or inputs not in (1, colours):
        return nn.Conv2d(inputs, colours, kernel_size=1)
    return _Repeat(colours) if inputs == 1 else nn.Identity()


class _Repeat(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, count, H, W)."""
        return x.expand(-1, self.count, -1, -1)
