"""A foundation model on volumes, whose slices it sees side by side on canvases."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.sam import SamSegmenter
from trainer.slice_mosaic import SliceMosaic


class MosaicSegmenter(nn.Module):
    """F_C^-1(F_FT(F_C(X))) of CFR: concatenate the slices, segment the canvases, cut the slices out again.

    Attributes:
        sam: Canvases (N, C, side, side) to logits.
        canvas: Place of each slice.
    """

    def __init__(self, sam: SamSegmenter, canvas: SliceMosaic) -> None:
        super().__init__()
        self.sam = sam
        self.canvas = canvas

    def forward(self, volumes: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> logits (N, K, X, Y, Z)."""
        return self.canvas.split(self.sam.predict(self.canvas.concatenate(volumes)))
