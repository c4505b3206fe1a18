"""Between volumes and the stacks of slices that 2D teachers see."""

from __future__ import annotations

from torch import Tensor


def to_slices(volumes: Tensor, axis: int) -> Tensor:
    """(N, C, X, Y, Z) -> (N * D, C, H, W), D the size along spatial ``axis``; slice k of volume i is row i * D + k."""
    moved = volumes.movedim(2 + axis, 1)
    return moved.reshape(-1, *moved.shape[2:])


def from_slices(slices: Tensor, count: int, axis: int) -> Tensor:
    """The inverse of :func:`to_slices` for ``count`` volumes."""
    stacked = slices.reshape(count, -1, *slices.shape[1:])
    return stacked.movedim(1, 2 + axis)
