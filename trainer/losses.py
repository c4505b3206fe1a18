"""Losses on logits (N, C, ...) of any number of spatial axes; means are over voxels and, for Dice, over classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

DICE_FLOOR = 1e-6


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (N, ...) int64 -> (N, C, ...) float32."""
    return torch.movedim(functional.one_hot(labels, classes), -1, 1).float()


def kl_mean(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)) averaged over voxels and classes (M&N Eq. 4 as released: ``reduction='mean'``).

    ``target`` (N, C, ...) holds probabilities. For one-hot targets this is the cross-entropy divided by C.
    """
    return functional.kl_div(functional.log_softmax(logits.float(), dim=1), target, reduction="none").mean()


def dice_pooled(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - 2 sum(p y) / (sum p^2 + sum y^2), sums over the whole batch and space, mean over all classes.

    Args:
        probabilities: (N, C, ...), after softmax.
        target: (N, C, ...), one-hot or soft; a class of which both are empty costs nothing.
    """
    p, y = probabilities.float(), target.float()
    axes = [0, *range(2, p.ndim)]
    overlap = 2.0 * (p * y).sum(axes)
    total = ((p * p).sum(axes) + (y * y).sum(axes)).clamp_min(DICE_FLOOR)
    return 1.0 - torch.where(total > DICE_FLOOR, overlap / total, torch.ones_like(total)).mean()


def supervised_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(cross-entropy + Dice) / 2 over labelled patches: the supervised term of the mean-teacher family.

    Args:
        logits: (N, C, ...).
        labels: (N, ...) int64, 0..C-1.
    """
    logits = logits.float()
    soft = torch.softmax(logits, dim=1)
    return 0.5 * (functional.cross_entropy(logits, labels) + dice_pooled(soft, one_hot(labels, logits.shape[1])))
