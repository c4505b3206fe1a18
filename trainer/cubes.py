"""Partition of volumes into k x k x k cubes, which are mixed between volumes and reassembled (MagicNet)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_cubes(volumes: Tensor, k: int) -> Tensor:
    """Cut (N, C, X, Y, Z) into (k^3, N, C, X/k, Y/k, Z/k); cube (i, j, l) has the index i + k j + k^2 l."""
    n, c, *sides = volumes.shape
    x, y, z = (side // k for side in sides)
    split = volumes.reshape(n, c, k, x, k, y, k, z)
    return split.permute(6, 4, 2, 0, 1, 3, 5, 7).reshape(k**3, n, c, x, y, z)


def from_cubes(cubes: Tensor, k: int) -> Tensor:
    """Reassemble volumes from cubes; the inverse of :func:`to_cubes`."""
    _, n, c, x, y, z = cubes.shape
    split = cubes.reshape(k, k, k, n, c, x, y, z).permute(3, 4, 2, 5, 1, 6, 0, 7)
    return split.reshape(n, c, k * x, k * y, k * z)


def draw_orders(positions: int, volumes: int) -> Tensor:
    """Draw a random order of the volumes for each cube position (positions, volumes), from torch's generator."""
    return torch.stack([torch.randperm(volumes) for _ in range(positions)])


def mix_cubes(volumes: Tensor, orders: Tensor, k: int) -> Tensor:
    """Mix volumes: cube p of mixed volume i is cube p of volume ``orders[p, i]``, so cubes keep their positions."""
    cubes = to_cubes(volumes, k)
    orders = orders.to(volumes.device)
    return from_cubes(torch.gather(cubes, 1, _spread(orders, cubes)), k)


def unmix_cubes(volumes: Tensor, orders: Tensor, k: int) -> Tensor:
    """Undo :func:`mix_cubes` with the same ``orders``."""
    return mix_cubes(volumes, orders.argsort(dim=1), k)


def _spread(orders: Tensor, cubes: Tensor) -> Tensor:
    return orders[:, :, None, None, None, None].expand_as(cubes)
