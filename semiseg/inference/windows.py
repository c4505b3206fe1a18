"""Where the windows of a sliding-window pass lie, how much each voxel of one counts, and how often each was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Blending = Literal["constant", "gaussian"]
SIGMA = 0.125  # of the window's side; nnU-Net's and MONAI's choice
FLOOR = 1e-3  # of the peak, per axis: a corner voxel seen by one window only must not divide by almost nothing


def starts_along(size: int, window: int, overlap: float) -> list[int]:
    """Starts of windows along one axis: a step of ``window * (1 - overlap)``, the last one flush with the end.

    Args:
        size: voxels along the axis, at least ``window`` (smaller scans are padded first).
        window: voxels per window.
        overlap: share of a window that the next one covers again, 0 <= overlap < 1.
    """
    if size < window:
        raise ValueError(f"{size} voxels cannot hold a window of {window}")
    # The tolerance keeps 10 * (1 - 0.8) = 1.9999999999999996 a step of 2.
    step = max(1, math.floor(window * (1.0 - overlap) + 1e-6))
    count = math.ceil((size - window) / step) + 1
    return [min(k * step, size - window) for k in range(count)]


def weights_along(window: int, blending: Blending) -> NDArray[np.float32]:
    """Weight of each voxel along one axis; the window's weight is the product over its axes. Strictly positive."""
    if blending == "constant":
        return np.ones(window, dtype=np.float32)
    centre = (window - 1) / 2.0
    profile = np.exp(-0.5 * ((np.arange(window) - centre) / max(window * SIGMA, 1e-6)) ** 2)
    return np.asarray(np.maximum(profile, FLOOR), dtype=np.float32)


@lru_cache(maxsize=8)
def window_weights(window: tuple[int, int, int], blending: Blending) -> NDArray[np.float32]:
    """Weights (X, Y, Z) of a window: made once, shared, read-only."""
    x, y, z = (weights_along(side, blending) for side in window)
    out = x[:, None, None] * y[None, :, None] * z[None, None, :]
    out.setflags(write=False)
    return out


def coverage_along(size: int, window: int, starts: Sequence[int], blending: Blending) -> NDArray[np.float32]:
    """Sum of weights that each voxel along one axis receives.

    Starts form a grid and weights a product, so the sum over all windows at (x, y, z) is the product of these three
    sums: no volume of counts is needed.
    """
    out = np.zeros(size, dtype=np.float32)
    profile = weights_along(window, blending)
    for start in starts:
        out[start : start + window] += profile
    return out


def padding_for(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add before and after each axis so that one window fits; the scan stays in the middle."""
    missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]
