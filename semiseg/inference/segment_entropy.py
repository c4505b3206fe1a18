"""Uncertainty of the network: the mean entropy of its probabilities in each segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import apply_activation
from semiseg.engines.slab import Activation
from semiseg.inference.sliding_window import CompletedRegion

# Largest number of voxels of a segment that are sampled in each part of a scan, evenly spaced. The mean does not need
# all voxels, and on a large scan they took as long as all other work outside the network.
MAX_SAMPLED_VOXELS = 2**14


class SegmentEntropy:
    """Observer that accumulates the entropy of the probabilities over the voxels of each segment.

    For exclusive segments it is the entropy over all classes, for regions the binary entropy of the region. Both are
    divided by their maximum, so that 0 is certain and 1 is a guess.
    """

    def __init__(self, segments: int, activation: Activation) -> None:
        """Create an observer for the masks of ``segments`` segments."""
        self._activation = activation
        self._sums = np.zeros(segments)
        self._counts = np.zeros(segments, dtype=np.int64)

    def begin(self, shape: tuple[int, ...]) -> None:
        """See :class:`semiseg.inference.probabilities.BlendObserver`."""
        del shape
        self._sums[:] = 0
        self._counts[:] = 0

    def add(self, part: CompletedRegion, labels: NDArray[np.uint8] | NDArray[np.bool_], *, logits: bool) -> None:
        """Accumulate a part; see :class:`semiseg.inference.probabilities.BlendObserver`."""
        if self._activation == "softmax":
            inside = np.flatnonzero(labels)
            of = labels.reshape(-1)[inside]
            for label in range(1, len(self._sums) + 1):
                places = inside[of == label]
                if not places.size:
                    continue
                step = -(-places.size // MAX_SAMPLED_VOXELS)
                where = np.unravel_index(places[::step], labels.shape)
                segment = np.full(where[0].size, label - 1, dtype=np.intp)
                self._add(segment, *self._probabilities(part, where, logits=logits), each=step)
            return
        p = apply_activation(part.mean(), "sigmoid" if logits else "none")
        for k, mask in enumerate(labels):
            inside = p[k][mask]
            self._add(np.full(inside.size, k), inside, 1.0 - inside)

    def mean(self) -> NDArray[np.float64]:
        """Return the mean entropy of each segment; NaN for a segment without voxels."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._sums / self._counts)

    def _probabilities(
        self, part: CompletedRegion, where: tuple[NDArray[np.intp], ...], *, logits: bool
    ) -> NDArray[np.float32]:
        """Return the probabilities (C, N) at the voxels ``where``."""
        x, y, z = where
        cx, cy, cz = part.coverage
        mean = part.sums[:, x, y, z] / (cx[x] * cy[y] * cz[z])
        return apply_activation(mean, "softmax") if logits else np.asarray(mean / mean.sum(axis=0))

    def _add(self, segment: NDArray[np.intp], *probabilities: NDArray[np.float32], each: int = 1) -> None:
        """Accumulate the entropy of voxels, each with the weight ``each``."""
        p = np.clip(np.stack(probabilities), 1e-7, 1.0)
        entropy = -(p * np.log(p)).sum(axis=0) / np.log(len(p))
        count = len(self._sums)
        self._sums += each * np.bincount(segment, weights=entropy, minlength=count)
        self._counts += each * np.bincount(segment, minlength=count)
