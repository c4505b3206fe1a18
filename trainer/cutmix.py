"""CutMix of volumes: a box of each patch is replaced by the same box of another patch (Yun et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BoxSlices = tuple[slice, slice, slice]


def numpy_generator() -> np.random.Generator:
    """Return a NumPy generator seeded from torch's generator, which the training loop seeds at every step."""
    return np.random.default_rng(int(torch.randint(2**31, ())))


def inner_box(sides: Sequence[int], random: np.random.Generator, share: float) -> BoxSlices:
    """Draw a box inside a patch whose sides are sqrt(1 - ``share``) of the patch's, as in DualFete's code."""
    box: list[slice] = []
    for side in sides:
        length = int(side * math.sqrt(1.0 - share))
        start = int(random.integers(0, side - length + 1))
        box.append(slice(start, start + length))
    return (box[0], box[1], box[2])


def centred_box(sides: Sequence[int], random: np.random.Generator, share: float) -> BoxSlices:
    """Draw a box with sides as in :func:`inner_box` around a centre in the last 7/8 of each side, as in AD-MT's code.

    The box is cut off at the border of the patch.
    """
    box: list[slice] = []
    for side in sides:
        half = int(side * math.sqrt(1.0 - share)) // 2
        centre = int(random.integers(side // 8, side))
        box.append(slice(max(0, centre - half), min(side, centre + half)))
    return (box[0], box[1], box[2])


def paste_boxes(values: Tensor, boxes: Sequence[BoxSlices], sources: Sequence[int]) -> Tensor:
    """Return a copy of values (N, ..., X, Y, Z) in which box k of row k is taken from row ``sources[k]``."""
    out = values.clone()
    for row, (box, source) in enumerate(zip(boxes, sources, strict=True)):
        out[(row, ..., *box)] = values[(source, ..., *box)]
    return out
