"""Positions and weights of the windows of a sliding-window pass, and the sums of the weights (coverage)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Blending = Literal["constant", "gaussian"]
SIGMA = 0.125  # share of the window's side, as in nnU-Net and MONAI
FLOOR = 1e-3  # share of the peak, per axis: avoids a division by almost zero at corner voxels of a single window


def starts_along(size: int, window: int, overlap: float) -> list[int]:
    """Return the starts of windows along one axis at steps of ``window * (1 - overlap)``; the last one ends at the end.

    Args:
        size: Number of voxels along the axis, at least ``window`` (smaller scans are padded first).
        window: Number of voxels per window.
        overlap: Share of a window that the next one covers again, 0 <= overlap < 1.
    """
    if size < window:
        raise ValueError(f"{size} voxels cannot hold a window of {window}")
    # With the tolerance, 10 * (1 - 0.8) = 1.9999999999999996 gives a step of 2.
    step = max(1, math.floor(window * (1.0 - overlap) + 1e-6))
    count = math.ceil((size - window) / step) + 1
    return [min(k * step, size - window) for k in range(count)]


def weights_along(window: int, blending: Blending) -> NDArray[np.float32]:
    """Return the positive weight of each voxel along one axis; the window's weight is the product over the axes."""
    if blending == "constant":
        return np.ones(window, dtype=np.float32)
    centre = (window - 1) / 2.0
    profile = np.exp(-0.5 * ((np.arange(window) - centre) / max(window * SIGMA, 1e-6)) ** 2)
    return np.asarray(np.maximum(profile, FLOOR), dtype=np.float32)


@lru_cache(maxsize=8)
def window_weights(window: tuple[int, int, int], blending: Blending) -> NDArray[np.float32]:
    """Return the weights (X, Y, Z) of a window; the array is cached, shared and read-only."""
    x, y, z = (weights_along(side, blending) for side in window)
    out = x[:, None, None] * y[None, :, None] * z[None, None, :]
    out.setflags(write=False)
    return out


def coverage_along(size: int, window: int, starts: Sequence[int], blending: Blending) -> NDArray[np.float32]:
    """Return the sum of weights that each voxel along one axis receives.

    Because the starts form a grid and the weights are a product over the axes, the sum over all windows at (x, y, z) is
    the product of the three sums, so no volume of sums is needed.
    """
    out = np.zeros(size, dtype=np.float32)
    profile = weights_along(window, blending)
    for start in starts:
        out[start : start + window] += profile
    return out


def padding_for(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
    """Return the voxels to add before and after each axis so that one window fits, with the scan in the middle."""
    missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]
