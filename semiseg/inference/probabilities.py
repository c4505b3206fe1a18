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

    def begin(self, shape: tuple[int, ...]) -> None:
        """Start a pass over a volume of ``shape`` (X, Y, Z), and discard the parts of an earlier pass.

        Voxels that are in no part of a pass are background, because their windows were skipped.
        """

    def add(self, part: CompletedRegion, labels: NDArray[np.uint8] | NDArray[np.bool_], *, logits: bool) -> None:
        """Process a completed part.

        Args:
            part: Blended windows. Voxels that ``part.decided`` excludes are background.
            labels: Decision at each voxel: classes (x, y, z), 0 for the background, or masks of regions (K, x, y, z).
            logits: True if logits were blended, False if probabilities were.
        """


class ProbabilityCollector:
    """Observer that stores the probability of every segment: softmax without the background, or sigmoid."""

    def __init__(self, segments: int, activation: Activation) -> None:
        """Create an observer for the masks of ``segments`` segments."""
        self._segments = segments
        self._activation = activation
        self._kept: NDArray[np.uint8] = np.zeros((segments, 0, 0, 0), np.uint8)

    def begin(self, shape: tuple[int, ...]) -> None:
        """See :class:`BlendObserver`."""
        self._kept = np.zeros((self._segments, *shape), np.uint8)

    def add(self, part: CompletedRegion, labels: NDArray[np.uint8] | NDArray[np.bool_], *, logits: bool) -> None:
        """See :class:`BlendObserver`."""
        del labels
        shares = apply_activation(part.mean(), self._activation if logits else "none")
        if self._activation == "softmax":
            shares = shares[1:]
        if part.decided is not None:
            shares = shares * part.decided
        self._kept[(slice(None), *part.place)] = np.rint(np.clip(shares, 0.0, 1.0) * PROBABILITY_LEVELS)

    def array(self) -> NDArray[np.uint8]:
        """Return the probabilities (K, X, Y, Z) in 255ths."""
        return self._kept
