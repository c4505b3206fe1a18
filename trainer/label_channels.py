"""Conversion of label codes to channels for whole scans in NumPy; see :mod:`trainer.targets` for batches in torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.cases import IGNORE
from trainer.targets import ExclusiveClasses, Targets

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class LabelChannels:
    """Conversion of label codes to channels.

    Attributes:
        segments: Number of segments.
        overlapping: True if codes are bits of regions, without a channel for the background.
    """

    segments: int
    overlapping: bool

    @classmethod
    def from_targets(cls, targets: Targets) -> LabelChannels:
        """Create the conversion that corresponds to a network's targets."""
        return cls(targets.segments, not isinstance(targets, ExclusiveClasses))

    def masks(self, codes: NDArray[np.uint8], ignores: bool) -> FloatArray:
        """Return masks (segments + 1, X, Y, Z): one for each segment, and last one of the voxels with a known code."""
        known = codes != IGNORE if ignores else np.ones(codes.shape, bool)
        wanted = range(self.segments)
        of = [((codes >> k) & 1 if self.overlapping else codes == k + 1) & known for k in wanted]
        return np.stack([*of, known]).astype(np.float32)

    def from_segments(self, segments: FloatArray) -> FloatArray:
        """Return probabilities (C, X, Y, Z) of the channels from those of the segments."""
        if self.overlapping:
            return segments
        return np.concatenate([np.clip(1.0 - segments.sum(axis=0, keepdims=True), 0.0, 1.0), segments])

    def decide(self, segments: FloatArray) -> NDArray[np.bool_]:
        """Return masks (segments, X, Y, Z) of the segments that have the given probabilities."""
        if self.overlapping:
            return np.asarray(segments >= 0.5)
        best = self.from_segments(segments).argmax(axis=0)
        return np.stack([best == k + 1 for k in range(self.segments)])
