"""Deep supervision: supervised losses on coarser levels of the decoder (Dou et al. 2016; nnU-Net)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trainer.losses import supervised_loss
from trainer.patches import Batch
from trainer.targets import Targets


def coarse_logits(calls: Sequence[tuple[Tensor, tuple[Tensor, ...]]], batch: Batch) -> list[Tensor]:
    """Return the coarser logits (n, K, x, y, z) of the labelled patches, finest first, from a call with these patches.

    Args:
        calls: Images and further outputs of each call of a network.
        batch: The batch. A call whose images begin with the batch's own memory received the labelled patches unchanged.
    """
    n = batch.labelled
    for images, outputs in calls:
        same = images.data_ptr() == batch.images.data_ptr() and images.shape[1:] == batch.images.shape[1:]
        if same and len(images) >= n:
            return [output[:n] for output in outputs]
    return []


def deep_supervision_loss(coarse: Sequence[Tensor], batch: Batch, targets: Targets) -> Tensor:
    """Compute sum_k 2^-k (cross-entropy + Dice) / 2 over the coarser levels k = 1, 2, ... (nearest-voxel labels)."""
    total = torch.zeros((), device=batch.images.device)
    labels = batch.labels[: batch.labelled]
    for level, logits in enumerate(coarse, start=1):
        small = functional.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")
        weights = batch.label_weights
        if weights is not None:
            weights = functional.interpolate(weights[:, None], size=logits.shape[2:], mode="nearest-exact")[:, 0]
        total = total + 0.5**level * supervised_loss(logits, small[:, 0].long(), targets, weights)
    return total
