"""Locally weighted fusion of the labels of registered atlases.

In each voxel, the vote of an atlas has the weight exp(-k d), where d is the mean squared difference of the locally
normalised images around the voxel (Artaechevarria et al., "Combination strategies in multi-atlas image segmentation",
IEEE TMI 2009; Sabuncu et al., "A generative model for image segmentation based on label fusion", IEEE TMI 2010).
"""

from __future__ import annotations

import numpy as np

from trainer.label_channels import FloatArray


class LabelFusion:
    """Running sums of the votes for a part of a scan; the memory does not depend on the number of atlases.

    Attributes:
        nearest: Smallest d of each voxel (X, Y, Z) among the atlases with a known label there; infinite if there is
            none.
    """

    def __init__(self, sharpness: float, segments: int, shape: tuple[int, ...]) -> None:
        """Initialise the sums without votes.

        Args:
            sharpness: Constant k of the weights exp(-k d).
            segments: Number of segments.
            shape: Number of voxels of the part along each axis.
        """
        self._sharpness = sharpness
        self._votes: FloatArray = np.zeros((segments, *shape), np.float32)
        self._all: FloatArray = np.zeros(shape, np.float32)
        self._reference: FloatArray = np.full(shape, np.inf, np.float32)  # the smallest k d, to which sums are relative
        self.nearest: FloatArray = np.full(shape, np.inf, np.float32)

    def add(self, masks: FloatArray, difference: FloatArray) -> None:
        """Add the votes of an atlas.

        Args:
            masks: Warped :meth:`LabelChannels.masks` (segments + 1, X, Y, Z) of the atlas.
            difference: Value of d in each voxel (X, Y, Z).
        """
        known = masks[-1]
        knows = known > 0
        self.nearest = np.where(knows, np.minimum(self.nearest, difference), self.nearest)
        exponent = self._sharpness * difference
        lower = np.where(knows, np.minimum(self._reference, exponent), self._reference)
        # Sums are relative to the most similar atlas, so that they do not underflow where d is large for all atlases.
        with np.errstate(invalid="ignore"):
            kept = np.where(np.isfinite(self._reference), np.exp(lower - self._reference), 0.0).astype(np.float32)
            weight = np.where(knows, np.exp(lower - exponent), 0.0).astype(np.float32)
        self._votes = self._votes * kept + weight * masks[:-1]  # masks are zero where the label is unknown
        self._all = self._all * kept + weight * known
        self._reference = lower

    def segment_probabilities(self) -> FloatArray:
        """Return the probabilities (segments, X, Y, Z); zero where no atlas has a known label."""
        return np.asarray(self._votes / np.maximum(self._all, 1e-6), dtype=np.float32)
