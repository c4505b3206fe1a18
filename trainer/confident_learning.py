"""Confident learning: detection of likely label errors with the probabilities of another network.

Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021: section 3.1 (the
confident joint) and 3.2 (ranking and pruning). Each voxel is an example.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-6  # tolerance: if all voxels of a class have the same probability, it equals their threshold


@torch.no_grad()
def label_errors(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Return a mask (N, ...) bool of the voxels whose label both pruning rules of the paper reject.

    Args:
        labels: Labels (N, ...) int64, 0..C-1, that may be wrong.
        probabilities: Probabilities (N, C, ...) of another network.
    """
    given = labels.reshape(-1)
    p = probabilities.movedim(1, -1).reshape(given.numel(), -1)
    counts = estimated_joint(given, p)
    return (_by_class(given, p, counts) & _by_noise_rate(given, p, counts)).reshape(labels.shape)


def estimated_joint(given: Tensor, p: Tensor) -> Tensor:
    """Estimate the number of examples (C, C) with given label i and true label j, calibrated to the given labels.

    An example counts for the most probable of the classes whose probability reaches the mean self-confidence of that
    class (Eqs. 1 to 3).
    """
    classes = p.shape[1]
    own = p.gather(1, given[:, None])[:, 0]
    count = torch.bincount(given, minlength=classes)
    # No example can reach the threshold of a class that is not among the given labels.
    threshold = torch.bincount(given, weights=own.double(), minlength=classes) / count.clamp_min(1)
    threshold = torch.where(count > 0, threshold, torch.full_like(threshold, float("inf")))
    reached = p.double() >= threshold - ROUNDING
    counted = reached.any(dim=1)
    true = torch.where(reached, p, torch.full_like(p, -1.0)).argmax(dim=1)
    pairs = torch.bincount(given[counted] * classes + true[counted], minlength=classes * classes)
    joint = pairs.reshape(classes, classes).double()
    rows = joint.sum(dim=1, keepdim=True)
    return torch.where(rows > 0, joint / rows.clamp_min(1) * count[:, None], torch.diag(count).double())


def _by_class(given: Tensor, p: Tensor, joint: Tensor) -> Tensor:
    """Select from each class the examples of least self-confidence, as many as the joint has off its diagonal."""
    out = torch.zeros_like(given, dtype=torch.bool)
    for c in range(p.shape[1]):
        mine = torch.nonzero(given == c)[:, 0]
        count = round(float(joint[c].sum() - joint[c, c]))
        if count:
            out[mine[torch.topk(-p[mine, c], min(count, len(mine))).indices]] = True
    return out


def _by_noise_rate(given: Tensor, p: Tensor, joint: Tensor) -> Tensor:
    """Select for each pair i, j the examples of largest margin p_j - p_i, as many as the joint has at (i, j)."""
    out = torch.zeros_like(given, dtype=torch.bool)
    for i in range(p.shape[1]):
        mine = torch.nonzero(given == i)[:, 0]
        for j in range(p.shape[1]):
            count = round(float(joint[i, j]))
            if j != i and count:
                margin = p[mine, j] - p[mine, i]
                out[mine[torch.topk(margin, min(count, len(mine))).indices]] = True
    return out
