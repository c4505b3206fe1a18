"""Losses on probabilities and logits (N, C, ...) of any number of spatial axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from semiseg.deprecation import renamed_attributes
from trainer.parallel import sum_over_processes
from trainer.targets import Targets

DICE_FLOOR = 1e-6
SMALLEST_WEIGHT = 1e-6

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, mean_of="weighted_mean", mean_where="masked_mean")


def dice_pooled(probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the Dice loss 1 - 2 sum(p y) / (sum p^2 + sum y^2), averaged over all channels.

    The sums run over all voxels of the batch, which is the batch of all processes that train together.

    Args:
        probabilities: Probabilities (N, C, ...).
        target: Target values (N, C, ...), binary or soft. A channel in which prediction and target are empty has the
            loss 0.
        weights: Weights (N, ...) of the voxels in the sums; None for 1.
    """
    p, y = probabilities.float(), target.float()
    if weights is not None:
        root = weights[:, None].sqrt()  # each term of a sum is a product of two of these
        p, y = p * root, y * root
    axes = [0, *range(2, p.ndim)]
    overlap, total = sum_over_processes(
        torch.stack([2.0 * (p * y).sum(axes), (p * p).sum(axes) + (y * y).sum(axes)])
    ).unbind()
    floored = total.clamp_min(DICE_FLOOR)
    return 1.0 - torch.where(floored > DICE_FLOOR, overlap / floored, torch.ones_like(floored)).mean()


def supervised_loss(logits: Tensor, labels: Tensor, targets: Targets, weights: Tensor | None = None) -> Tensor:
    """Compute (cross-entropy + Dice) / 2 over labelled patches, the supervised term of the mean-teacher family.

    Args:
        logits: Logits (N, C, ...).
        labels: Labels (N, ...) int64, as ``targets`` encodes them. N may be 0, for a part of a batch without labelled
            patches.
        targets: Meaning of the channels.
        weights: Weights (N, ...) of the voxels; None for 1.
    """
    return soft_loss(logits, targets.encode(labels), targets, weights)


def soft_loss(logits: Tensor, target: Tensor, targets: Targets, weights: Tensor | None = None) -> Tensor:
    """Compute (cross-entropy + Dice) / 2 with probabilities as the target.

    Args:
        logits: Logits (N, C, ...).
        target: Probabilities (N, C, ...) of the channels.
        targets: Meaning of the channels.
        weights: Weights (N, ...) of the voxels; None for 1.
    """
    crossed = weighted_mean(targets.cross_entropy(logits, target), weights)
    return 0.5 * (crossed + dice_pooled(targets.probabilities(logits), target, weights))


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of ``values``, weighted if there are ``weights`` of the same shape; zero for no values.

    A weighted mean is taken over the batch of all processes.
    """
    if weights is None:
        return values.sum() / max(values.numel(), 1)
    top, total = sum_over_processes(torch.stack([(values * weights).sum(), weights.sum().to(values.dtype)])).unbind()
    return top / total.clamp_min(SMALLEST_WEIGHT)


def masked_mean(values: Tensor, where: Tensor, *, otherwise: Tensor | None = None) -> Tensor:
    """Return the mean of ``values`` over the voxels ``where`` (both (N, ...)), over the batch of all processes.

    If no voxel is selected, the result is the mean of ``otherwise``, by default zero.
    """
    top, count = sum_over_processes(torch.stack([(values * where).sum(), where.sum().to(values.dtype)])).unbind()
    mean = top / count.clamp_min(1)
    if otherwise is None:
        return mean
    total, size = sum_over_processes(
        torch.stack([otherwise.sum(), torch.full_like(count, float(otherwise.numel()))])
    ).unbind()
    return torch.where(count > 0, mean, total / size.clamp_min(1))
