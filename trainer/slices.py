"""Conversion between volumes and the stacks of slices for 2D teachers."""

from __future__ import annotations

from torch import Tensor


def to_slices(volumes: Tensor, axis: int) -> Tensor:
    """Convert volumes (N, C, X, Y, Z) to slices (N * D, C, H, W) along spatial ``axis``.

    D is the size along ``axis``; slice k of volume i is row i * D + k.
    """
    moved = volumes.movedim(2 + axis, 1)
    return moved.reshape(-1, *moved.shape[2:])


def from_slices(slices: Tensor, count: int, axis: int) -> Tensor:
    """Convert slices back to ``count`` volumes; the inverse of :func:`to_slices`."""
    stacked = slices.reshape(count, -1, *slices.shape[1:])
    return stacked.movedim(1, 2 + axis)
