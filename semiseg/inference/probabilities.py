"""The probability of each segment at every voxel, out of the blended windows of a pass."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import apply_activation
from semiseg.engines.slab import Activation
from semiseg.inference.sliding_window import CompletedRegion
from semiseg.volumes.segmentation import PROBABILITY_LEVELS


class BlendObserver(Protocol):
    """Is shown each part of a pass when no later window changes it."""

    def add(self, part: CompletedRegion, labels: NDArray[np.uint8] | NDArray[np.bool_], *, logits: bool) -> None:
        """Take in a part.

        Args:
            part: what the windows sum to.
            labels: the decision: classes (x, y, z), 0 the background, or masks of regions (K, x, y, z).
            logits: whether logits were blended; else probabilities.
        """


class ProbabilityCollector:
    """Keeps the probability of every segment: softmax without the background for exclusive ones, else sigmoid."""

    def __init__(self, activation: Activation) -> None:
        """For a network with this activation."""
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
        """(K, X, Y, Z) in 255ths."""
        return self._kept
