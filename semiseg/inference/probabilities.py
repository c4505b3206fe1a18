"""The probability of each segment at every voxel, out of the blended windows of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Activation, activated
from semiseg.volumes.segmentation import PROBABILITY_LEVELS


class Watcher(Protocol):
    """Is shown each part of a pass when no later window changes it."""

    def add(self, sums: NDArray[np.float32], coverage: Sequence[NDArray[np.float32]], *, logits: bool) -> None:
        """Take in finished planes.

        Args:
            sums: (C, planes, Y, Z): blended windows.
            coverage: what their weights sum to along the three axes.
            logits: whether logits were blended; else probabilities.
        """


class Probabilities:
    """Keeps the probability of every segment: softmax without the background for exclusive ones, else sigmoid."""

    def __init__(self, activation: Activation) -> None:
        """For a network with this activation."""
        self._activation = activation
        self._planes: list[NDArray[np.uint8]] = []

    def add(self, sums: NDArray[np.float32], coverage: Sequence[NDArray[np.float32]], *, logits: bool) -> None:
        """See :class:`Watcher`."""
        shares = averaged(sums, coverage, self._activation if logits else "none")
        if self._activation == "softmax":
            shares = shares[1:]
        self._planes.append(np.rint(np.clip(shares, 0.0, 1.0) * PROBABILITY_LEVELS).astype(np.uint8))

    def array(self) -> NDArray[np.uint8]:
        """(K, X, Y, Z) in 255ths, of the planes taken in so far."""
        return np.concatenate(self._planes, axis=1)


def averaged(
    sums: NDArray[np.float32], coverage: Sequence[NDArray[np.float32]], activation: Activation
) -> NDArray[np.float32]:
    """``activation`` of the weighted mean of the windows, (C, X, Y, Z); see :class:`Watcher` for the arguments."""
    cx, cy, cz = coverage
    return activated(sums / (cx[:, None, None] * cy[None, :, None] * cz), activation)
