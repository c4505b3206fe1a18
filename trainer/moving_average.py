"""Moving averages of networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_moving_average(teacher: nn.Module, student: nn.Module, decay: float, *, buffers: bool) -> None:
    """Move the teacher's parameters towards the student's: decay times its own plus the rest of the student's.

    Modules that the student shares between its parts may be the teacher's own in each part, or shared as well.

    Raises:
        ValueError: The two have parameters of other names.
    """
    theirs = dict(student.named_parameters(remove_duplicate=False))
    if theirs.keys() != dict(teacher.named_parameters(remove_duplicate=False)).keys():
        raise ValueError("Networks with other parameters have no average.")
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
