"""Several processes train as one: each takes its rows of every batch, and their gradients are averaged.

A batch of B patches over W processes is B/W patches each. Losses that are ratios of sums over the batch (Dice, masked
means) sum their terms over the processes, with gradient, so that the result does not depend on W but for rounding, for
random numbers, and for what looks at the patches of one process only: a batch norm, patches mixed with one another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_process_count() -> int:
    """Number of processes that train on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is; the first one writes the run folder."""
    return dist.get_rank() if process_count() > 1 else 0


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of ``value`` over the processes; gradients pass through it."""
    if process_count() == 1:
        return value
    summed: Tensor = _Sum.apply(value)
    return summed


class _Sum(torch.autograd.Function):
    """Each process's value adds to every process's sum, so its gradient is the sum of all of theirs."""

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
    """Give every parameter the mean of its gradients over the processes, in one message per kind of number.

    A parameter that only some processes used counts as zero in the others: a part of a batch may lack labelled patches.
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
    """Give every process the first one's parameters and buffers."""
    if process_count() > 1:
        for network in networks:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


def average_buffers(networks: Iterable[nn.Module]) -> None:
    """Give every process the mean of the running statistics of batch norms; each has seen its own patches."""
    if process_count() == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            if buffer.dtype in (torch.float32, torch.float16, torch.bfloat16):  # float64 holds sums that agree already
                dist.all_reduce(buffer)
                buffer /= process_count()


def average_values(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The means of logged numbers over the processes, which all have the same names."""
    if process_count() == 1:
        return values
    names = sorted(values)
    summed = torch.tensor([values[name] for name in names], device=device, dtype=torch.float32)
    dist.all_reduce(summed)
    return dict(zip(names, (summed / process_count()).tolist(), strict=True))


def broadcast_value(value: float, device: torch.device) -> float:
    """The number that the first process has."""
    if process_count() == 1:
        return value
    shared = torch.tensor(value, device=device, dtype=torch.float32)
    dist.broadcast(shared, src=0)
    return float(shared)


def shut_down() -> None:
    """End a process that trained with others, once all its files are written.

    On CPUs a thread of gloo now and then outlives the interpreter and aborts the process after its last line, with
    everything done; the launcher would report a failure. A process that trained alone goes on.
    """
    if process_count() > 1:
        barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def barrier() -> None:
    """Return when every process is here."""
    if process_count() > 1:
        dist.barrier()
