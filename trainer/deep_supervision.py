"""Deep supervision: the labels teach coarser levels of the decoder, too (Dou et al. 2016; nnU-Net)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trainer.losses import supervised_loss
from trainer.patches import Batch
from trainer.targets import Targets


def coarse_logits(calls: Sequence[tuple[Tensor, tuple[Tensor, ...]]], batch: Batch) -> list[Tensor]:
    """Coarser logits of the labelled patches (n, K, x, y, z), finest first, of a call that saw them as they are.

    Args:
        calls: Images and further outputs of each call of a network.
        batch: The batch; a call that has its first patches in memory saw its labelled ones.
    """
    n = batch.labelled
    for images, outputs in calls:
        same = images.data_ptr() == batch.images.data_ptr() and images.shape[1:] == batch.images.shape[1:]
        if same and len(images) >= n:
            return [output[:n] for output in outputs]
    return []


def deep_supervision_loss(coarse: Sequence[Tensor], batch: Batch, targets: Targets) -> Tensor:
    """sum_k 2^-k (cross-entropy + Dice) / 2 at the k-th coarser level, k from 1, on labels taken by nearest voxel."""
    total = torch.zeros((), device=batch.images.device)
    labels = batch.labels[: batch.labelled]
    for level, logits in enumerate(coarse, start=1):
        small = functional.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")
        weights = batch.label_weights
        if weights is not None:
            weights = functional.interpolate(weights[:, None], size=logits.shape[2:], mode="nearest-exact")[:, 0]
        total = total + 0.5**level * supervised_loss(logits, small[:, 0].long(), targets, weights)
    return total
