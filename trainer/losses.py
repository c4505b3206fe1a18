"""Losses on probabilities and logits (N, C, ...) of any number of spatial axes."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.parallel import sum_over_processes
from trainer.targets import Targets

DICE_FLOOR = 1e-6
SMALLEST_WEIGHT = 1e-6


def dice_pooled(probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - 2 sum(p y) / (sum p^2 + sum y^2), sums over the whole batch and space, mean over all channels.

    The batch is that of all processes that train together.

    Args:
        probabilities: (N, C, ...).
        target: (N, C, ...), zeros and ones or soft; a channel of which both are empty costs nothing.
        weights: Weights (N, ...) of the voxels in the sums; None for 1.
    """
    p, y = probabilities.float(), target.float()
    if weights is not None:
        root = weights[:, None].sqrt()  # each sum is of products of two
        p, y = p * root, y * root
    axes = [0, *range(2, p.ndim)]
    overlap, total = sum_over_processes(
        torch.stack([2.0 * (p * y).sum(axes), (p * p).sum(axes) + (y * y).sum(axes)])
    ).unbind()
    floored = total.clamp_min(DICE_FLOOR)
    return 1.0 - torch.where(floored > DICE_FLOOR, overlap / floored, torch.ones_like(floored)).mean()


def supervised_loss(logits: Tensor, labels: Tensor, targets: Targets, weights: Tensor | None = None) -> Tensor:
    """(cross-entropy + Dice) / 2 over labelled patches: the supervised term of the mean-teacher family.

    Args:
        logits: (N, C, ...).
        labels: (N, ...) int64, as ``targets`` encodes them. N may be 0, for a part of a batch without labelled patches.
        targets: what the channels mean.
        weights: Weights (N, ...) of the voxels; None for 1.
    """
    return soft_loss(logits, targets.encode(labels), targets, weights)


def soft_loss(logits: Tensor, target: Tensor, targets: Targets, weights: Tensor | None = None) -> Tensor:
    """(Cross-entropy + Dice) / 2 against probabilities.

    Args:
        logits: (N, C, ...).
        target: Probabilities (N, C, ...) of the channels.
        targets: What the channels mean.
        weights: Weights (N, ...) of the voxels; None for 1.
    """
    crossed = weighted_mean(targets.cross_entropy(logits, target), weights)
    return 0.5 * (crossed + dice_pooled(targets.probabilities(logits), target, weights))


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean, weighted where there are ``weights`` of the same shape, and zero for no values at all.

    A weighted mean is that of the batch of all processes.
    """
    if weights is None:
        return values.sum() / max(values.numel(), 1)
    top, total = sum_over_processes(torch.stack([(values * weights).sum(), weights.sum().to(values.dtype)])).unbind()
    return top / total.clamp_min(SMALLEST_WEIGHT)


def masked_mean(values: Tensor, where: Tensor, *, otherwise: Tensor | None = None) -> Tensor:
    """The mean of ``values`` over the voxels ``where`` (both (N, ...)), over the batch of all processes.

    Where no voxel counts: the mean of ``otherwise``, by default zero.
    """
    top, count = sum_over_processes(torch.stack([(values * where).sum(), where.sum().to(values.dtype)])).unbind()
    mean = top / count.clamp_min(1)
    if otherwise is None:
        return mean
    total, size = sum_over_processes(
        torch.stack([otherwise.sum(), torch.full_like(count, float(otherwise.numel()))])
    ).unbind()
    return torch.where(count > 0, mean, total / size.clamp_min(1))
