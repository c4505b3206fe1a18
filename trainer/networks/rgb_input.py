"""From a scan's channels to the three of natural images."""

from __future__ import annotations

from torch import Tensor, nn

RGB_CHANNELS = 3


def rgb_input_layer(inputs: int, how: str, colours: int = RGB_CHANNELS) -> nn.Module:
    """``repeat`` one channel, or learn a 1x1 ``conv``; three channels stay as they are unless ``conv`` is asked for."""
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
