"""Moving averages of networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_moving_average(teacher: nn.Module, student: nn.Module, decay: float, *, buffers: bool) -> None:
    """Update the teacher's parameters to decay * teacher + (1 - decay) * student.

    A module that several parts of the student share may be shared or separate in the teacher.

    Args:
        teacher: Network that is updated in place.
        student: Network with parameters of the same names.
        decay: Weight of the teacher's own parameters.
        buffers: If True, floating-point buffers are averaged in the same way, and others are copied.

    Raises:
        ValueError: The parameters of the two networks have different names.
    """
    theirs = dict(student.named_parameters(remove_duplicate=False))
    if theirs.keys() != dict(teacher.named_parameters(remove_duplicate=False)).keys():
        raise ValueError("Networks with different parameter names cannot be averaged.")
    for name, mine in teacher.named_parameters():
        mine.mul_(decay).add_(theirs[name].detach(), alpha=1.0 - decay)
    if buffers:
        currents = dict(student.named_buffers(remove_duplicate=False))
        for name, kept in teacher.named_buffers():
            current = currents[name]
            if kept.is_floating_point():
                kept.mul_(decay).add_(current, alpha=1.0 - decay)
            else:
                kept.copy_(current)
