"""Soft labels of whole scans: a probability for each channel and a weight for each voxel, stored as bytes.

An array (C + 1, X, Y, Z) of uint8 contains the probabilities of the C channels and then the weights, each multiplied by
255. A label map (X, Y, Z) contains codes (:class:`trainer.targets.Targets`). Both are stored and cut into patches in
the same way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.targets import Targets

BYTE_MAX = 255


def to_bytes(probabilities: NDArray[np.floating], weights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert probabilities (C, X, Y, Z) and weights (X, Y, Z), all in [0, 1], to soft labels (C + 1, X, Y, Z)."""
    values = np.concatenate([probabilities, weights[None]])
    return np.rint(np.clip(values, 0.0, 1.0) * BYTE_MAX).astype(np.uint8)


def from_bytes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Convert soft labels (N, C + 1, ...) to probabilities (N, C, ...) and weights (N, ...), both float32.

    The probabilities of exclusive classes sum to 1 except for the rounding to bytes.
    """
    values = labels.float() / BYTE_MAX
    return values[:, :-1], values[:, -1]


def is_soft(labels: NDArray[np.uint8]) -> bool:
    """Return True if an array of labels of a scan is soft."""
    return labels.ndim > 3


def to_label_map(labels: NDArray[np.uint8], targets: Targets) -> NDArray[np.uint8]:
    """Convert labels of a scan, soft or not, to a label map (X, Y, Z) of codes."""
    if not is_soft(labels):
        return np.asarray(labels)
    channels = torch.from_numpy(np.array(labels[:-1]))[None]
    # Classes are decided from the bytes, which needs no more memory than the labels. Regions need values in [0, 1] for
    # their threshold of 0.5.
    found = targets.decide(channels if targets.segments < targets.channels else channels.float() / BYTE_MAX)
    return np.asarray(found[0].numpy(), dtype=np.uint8)
