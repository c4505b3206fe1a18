"""Volumes cut into k x k x k cubes, mixed between the volumes of a batch, and put together again (MagicNet)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_cubes(volumes: Tensor, k: int) -> Tensor:
    """(N, C, X, Y, Z) -> (k^3, N, C, X/k, Y/k, Z/k); cube (i, j, l) is at i + k j + k^2 l."""
    n, c, *sides = volumes.shape
    x, y, z = (side // k for side in sides)
    split = volumes.reshape(n, c, k, x, k, y, k, z)
    return split.permute(6, 4, 2, 0, 1, 3, 5, 7).reshape(k**3, n, c, x, y, z)


def from_cubes(cubes: Tensor, k: int) -> Tensor:
    """The inverse of :func:`to_cubes`."""
    _, n, c, x, y, z = cubes.shape
    split = cubes.reshape(k, k, k, n, c, x, y, z).permute(3, 4, 2, 5, 1, 6, 0, 7)
    return split.reshape(n, c, k * x, k * y, k * z)


def draw_orders(positions: int, volumes: int) -> Tensor:
    """For each cube position a random order of the volumes (positions, volumes), from torch's generator."""
    return torch.stack([torch.randperm(volumes) for _ in range(positions)])


def mix_cubes(volumes: Tensor, orders: Tensor, k: int) -> Tensor:
    """Cube p of mixed volume i is cube p of volume ``orders[p, i]``: every cube keeps its place in the body."""
    cubes = to_cubes(volumes, k)
    orders = orders.to(volumes.device)
    return from_cubes(torch.gather(cubes, 1, _spread(orders, cubes)), k)


def unmix_cubes(volumes: Tensor, orders: Tensor, k: int) -> Tensor:
    """The inverse of :func:`mix_cubes`."""
    return mix_cubes(volumes, orders.argsort(dim=1), k)


def _spread(orders: Tensor, cubes: Tensor) -> Tensor:
    return orders[:, :, None, None, None, None].expand_as(cubes)
