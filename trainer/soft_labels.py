"""Labels of whole scans that are not certain: a probability for each channel and a weight for each voxel, in bytes.

An array (C + 1, X, Y, Z) of uint8 holds the probabilities of the C channels and then the weights, each as a share of
255. A label map (X, Y, Z) holds codes (:class:`trainer.targets.Targets`); both are kept and cut into patches alike.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.targets import Targets

BYTE_MAX = 255


def to_bytes(probabilities: NDArray[np.floating], weights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Soft labels (C + 1, X, Y, Z) of probabilities (C, X, Y, Z) and weights (X, Y, Z), all between 0 and 1."""
    values = np.concatenate([probabilities, weights[None]])
    return np.rint(np.clip(values, 0.0, 1.0) * BYTE_MAX).astype(np.uint8)


def from_bytes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C, ...) and weights (N, ...), both float32, of soft labels (N, C + 1, ...).

    The probabilities of exclusive classes sum to 1 but for what rounding to bytes leaves.
    """
    values = labels.float() / BYTE_MAX
    return values[:, :-1], values[:, -1]


def is_soft(labels: NDArray[np.uint8]) -> bool:
    """Whether an array of labels of a scan is soft."""
    return labels.ndim > 3


def to_label_map(labels: NDArray[np.uint8], targets: Targets) -> NDArray[np.uint8]:
    """The label map (X, Y, Z) of codes that labels of a scan, soft or not, come to."""
    if not is_soft(labels):
        return np.asarray(labels)
    channels = torch.from_numpy(np.array(labels[:-1]))[None]
    # Of bytes: deciding needs no more memory than the labels have. A region holds a voxel from one half on.
    found = targets.decide(channels if targets.segments < targets.channels else channels.float() / BYTE_MAX)
    return np.asarray(found[0].numpy(), dtype=np.uint8)
