"""Data-parallel training: each process takes its rows of every batch, and the gradients are averaged.

With W processes, each takes B/W of the B patches of a batch. Losses that are ratios of sums over the batch (Dice,
masked means) sum their terms over the processes, with gradients. The result therefore depends on W only by rounding, by
random numbers, and by operations that see the patches of one process only, such as batch norm or mixing of patches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from semiseg.deprecation import renamed_attributes

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, processes="process_count")


def process_count() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_process_count() -> int:
    """Return the number of processes that train on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0; process 0 writes the run folder."""
    return dist.get_rank() if process_count() > 1 else 0


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over the processes; gradients pass through it."""
    if process_count() == 1:
        return value
    summed: Tensor = _Sum.apply(value)
    return summed


class _Sum(torch.autograd.Function):
    """Sum over the processes. A value is part of every process's sum, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def average_gradients(networks: Iterable[nn.Module]) -> None:
    """Average the gradients of all parameters over the processes, with one message per data type.

    A gradient that is missing in some processes counts as zero there, since a part of a batch may have no labelled
    patches.
    """
    if process_count() == 1:
        return
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(used)
    parameters = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
    for kind in sorted({p.dtype for p in parameters}, key=str):
        group = [p for p in parameters if p.dtype == kind]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group])
        dist.all_reduce(flat)
        flat /= process_count()
        for p, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
            p.grad = part.view_as(p).clone()


def broadcast_networks(networks: Iterable[nn.Module]) -> None:
    """Copy the parameters and buffers of the first process to all processes."""
    if process_count() > 1:
        for network in networks:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


def average_buffers(networks: Iterable[nn.Module]) -> None:
    """Average the running statistics of batch norms over the processes, each of which has seen other patches."""
    if process_count() == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            if buffer.dtype in (torch.float32, torch.float16, torch.bfloat16):  # float64 sums are the same everywhere
                dist.all_reduce(buffer)
                buffer /= process_count()


def average_values(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Average logged numbers over the processes, which have the same names in each."""
    if process_count() == 1:
        return values
    names = sorted(values)
    summed = torch.tensor([values[name] for name in names], device=device, dtype=torch.float32)
    dist.all_reduce(summed)
    return dict(zip(names, (summed / process_count()).tolist(), strict=True))


def broadcast_value(value: float, device: torch.device) -> float:
    """Return the value of the first process."""
    if process_count() == 1:
        return value
    shared = torch.tensor(value, device=device, dtype=torch.float32)
    dist.broadcast(shared, src=0)
    return float(shared)


def shut_down() -> None:
    """Exit a process that trained with others, after all its files are written; a process that trained alone continues.

    On CPUs, a thread of gloo sometimes outlives the interpreter and aborts the process at its exit, although all work
    is done. The launcher would then report a failure.
    """
    if process_count() > 1:
        barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def barrier() -> None:
    """Wait until every process has called this function."""
    if process_count() > 1:
        dist.barrier()
