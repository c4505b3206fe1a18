"""Moving averages of networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, decay: float, *, buffers: bool) -> None:
    """Move the teacher's parameters towards the student's: decay times its own plus the rest of the student's."""
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    for mine, theirs in pairs:
        mine.mul_(decay).add_(theirs.detach(), alpha=1.0 - decay)
    if buffers:
        for kept, current in zip(teacher.buffers(), student.buffers(), strict=True):
            if kept.is_floating_point():
                kept.mul_(decay).add_(current, alpha=1.0 - decay)
            else:
                kept.copy_(current)
