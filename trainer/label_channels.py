"""Codes of label maps as channels, for whole scans in NumPy; :mod:`trainer.targets` does it for batches in torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.cases import IGNORE
from trainer.targets import ExclusiveClasses, Targets

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class LabelChannels:
    """How codes become channels.

    Attributes:
        segments: Number of segments.
        overlapping: Codes are bits of regions, and there is no channel for the background.
    """

    segments: int
    overlapping: bool

    @classmethod
    def from_targets(cls, targets: Targets) -> LabelChannels:
        """Those of a network's targets."""
        return cls(targets.segments, not isinstance(targets, ExclusiveClasses))

    def masks(self, codes: NDArray[np.uint8], ignores: bool) -> FloatArray:
        """A map (segments + 1, X, Y, Z): each segment, and last where the code is known."""
        known = codes != IGNORE if ignores else np.ones(codes.shape, bool)
        wanted = range(self.segments)
        of = [((codes >> k) & 1 if self.overlapping else codes == k + 1) & known for k in wanted]
        return np.stack([*of, known]).astype(np.float32)

    def from_segments(self, segments: FloatArray) -> FloatArray:
        """Probabilities (C, X, Y, Z) of the channels from those of the segments."""
        if self.overlapping:
            return segments
        return np.concatenate([np.clip(1.0 - segments.sum(axis=0, keepdims=True), 0.0, 1.0), segments])

    def decide(self, segments: FloatArray) -> NDArray[np.bool_]:
        """Masks (segments, X, Y, Z) of what probabilities come to."""
        if self.overlapping:
            return np.asarray(segments >= 0.5)
        best = self.from_segments(segments).argmax(axis=0)
        return np.stack([best == k + 1 for k in range(self.segments)])
