"""Observers of the blended windows, and the probability of each segment at every voxel."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import apply_activation
from semiseg.engines.slab import Activation
from semiseg.inference.sliding_window import CompletedRegion
from semiseg.volumes.segmentation import PROBABILITY_LEVELS


class BlendObserver(Protocol):
    """Interface of observers that receive each part of a volume when no later window changes it."""

    def add(self, part: CompletedRegion, labels: NDArray[np.uint8] | NDArray[np.bool_], *, logits: bool) -> None:
        """Process a completed part.

        Args:
            part: Blended windows.
            labels: Decision at each voxel: classes (x, y, z), 0 for the background, or masks of regions (K, x, y, z).
            logits: True if logits were blended, False if probabilities were.
        """


class ProbabilityCollector:
    """Observer that stores the probability of every segment: softmax without the background, or sigmoid."""

    def __init__(self, activation: Activation) -> None:
        """Create an observer for a network with this activation."""
        self._activation = activation
        self._kept: NDArray[np.uint8] = np.zeros((0, 0, 0, 0), np.uint8)

    def add(self, part: CompletedRegion, labels: NDArray[np.uint8] | NDArray[np.bool_], *, logits: bool) -> None:
        """See :class:`BlendObserver`."""
        del labels
        shares = apply_activation(part.mean(), self._activation if logits else "none")
        if self._activation == "softmax":
            shares = shares[1:]
        if not self._kept.size:
            self._kept = np.zeros((len(shares), *part.shape), np.uint8)
        self._kept[(slice(None), *part.place)] = np.rint(np.clip(shares, 0.0, 1.0) * PROBABILITY_LEVELS)

    def array(self) -> NDArray[np.uint8]:
        """Return the probabilities (K, X, Y, Z) in 255ths."""
        return self._kept
