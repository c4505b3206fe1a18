"""Votes of registered atlases, voxel by voxel.

The vote of an atlas weighs exp(-k d), where d is the mean squared difference of the locally normalised images around
the voxel (locally weighted fusion: Artaechevarria et al., "Combination strategies in multi-atlas image segmentation",
IEEE TMI 2009; Sabuncu et al., "A generative model for image segmentation based on label fusion", IEEE TMI 2010).
"""

from __future__ import annotations

import numpy as np

from trainer.label_channels import FloatArray


class LabelFusion:
    """Votes for a part of a scan, taken in one atlas after the other, so that memory does not grow with their number.

    Attributes:
        nearest: Smallest d of each voxel (X, Y, Z) among the atlases that know it; infinite where none does.
    """

    def __init__(self, sharpness: float, segments: int, shape: tuple[int, ...]) -> None:
        """Begin without any vote.

        Args:
            sharpness: k.
            segments: Number of segments.
            shape: Voxels of the part.
        """
        self._sharpness = sharpness
        self._votes: FloatArray = np.zeros((segments, *shape), np.float32)
        self._all: FloatArray = np.zeros(shape, np.float32)
        self._reference: FloatArray = np.full(shape, np.inf, np.float32)  # the k d that the sums are relative to
        self.nearest: FloatArray = np.full(shape, np.inf, np.float32)

    def add(self, masks: FloatArray, difference: FloatArray) -> None:
        """Take in an atlas.

        Args:
            masks: Warped :meth:`Channels.masks` (segments + 1, X, Y, Z).
            difference: d (X, Y, Z).
        """
        known = masks[-1]
        knows = known > 0
        self.nearest = np.where(knows, np.minimum(self.nearest, difference), self.nearest)
        exponent = self._sharpness * difference
        lower = np.where(knows, np.minimum(self._reference, exponent), self._reference)
        # Sums relative to the nearest atlas, so that where all differ much none is lost in rounding.
        with np.errstate(invalid="ignore"):
            kept = np.where(np.isfinite(self._reference), np.exp(lower - self._reference), 0.0).astype(np.float32)
            weight = np.where(knows, np.exp(lower - exponent), 0.0).astype(np.float32)
        self._votes = self._votes * kept + weight * masks[:-1]  # masks are zero where the label is unknown
        self._all = self._all * kept + weight * known
        self._reference = lower

    def segment_probabilities(self) -> FloatArray:
        """Probabilities (segments, X, Y, Z); zero where no atlas knows anything."""
        return np.asarray(self._votes / np.maximum(self._all, 1e-6), dtype=np.float32)
