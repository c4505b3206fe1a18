"""CutMix of volumes: a box of each patch is replaced by the same box of another patch (Yun et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BoxSlices = tuple[slice, slice, slice]


def numpy_generator() -> np.random.Generator:
    """Random numbers of NumPy that follow torch's, which the loop seeds at every step."""
    return np.random.default_rng(int(torch.randint(2**31, ())))


def inner_box(sides: Sequence[int], random: np.random.Generator, share: float) -> BoxSlices:
    """A box inside a patch whose sides are sqrt(1 - ``share``) of the patch's, as in DualFete's code."""
    box: list[slice] = []
    for side in sides:
        length = int(side * math.sqrt(1.0 - share))
        start = int(random.integers(0, side - length + 1))
        box.append(slice(start, start + length))
    return (box[0], box[1], box[2])


def centred_box(sides: Sequence[int], random: np.random.Generator, share: float) -> BoxSlices:
    """A box of such sides around a centre in the last 7/8 of each side, cut at the border, as in AD-MT's code."""
    box: list[slice] = []
    for side in sides:
        half = int(side * math.sqrt(1.0 - share)) // 2
        centre = int(random.integers(side // 8, side))
        box.append(slice(max(0, centre - half), min(side, centre + half)))
    return (box[0], box[1], box[2])


def paste_boxes(values: Tensor, boxes: Sequence[BoxSlices], sources: Sequence[int]) -> Tensor:
    """Values (N, ..., X, Y, Z) in which box k of row k holds what row ``sources[k]`` has there."""
    out = values.clone()
    for row, (box, source) in enumerate(zip(boxes, sources, strict=True)):
        out[(row, ..., *box)] = values[(source, ..., *box)]
    return out
