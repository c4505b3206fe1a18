"""A foundation model for 2D images applied to volumes, with their slices side by side in mosaics."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.sam import SamSegmenter
from trainer.slice_mosaic import SliceMosaic


class MosaicSegmenter(nn.Module):
    """F_C^-1(F_FT(F_C(X))) of CFR: concatenate the slices, segment the mosaics, split them into slices again.

    Attributes:
        sam: Network from mosaics (N, C, side, side) to logits.
        canvas: Layout of the slices in the mosaics.
    """

    def __init__(self, sam: SamSegmenter, canvas: SliceMosaic) -> None:
        super().__init__()
        self.sam = sam
        self.canvas = canvas

    def forward(self, volumes: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> logits (N, K, X, Y, Z)."""
        return self.canvas.split(self.sam.predict(self.canvas.concatenate(volumes)))
