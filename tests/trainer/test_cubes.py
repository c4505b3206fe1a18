"""Cubes keep their places, whatever is mixed (MagicNet)."""

from __future__ import annotations

import pytest
import torch

from trainer.cubes import draw_orders, from_cubes, mix_cubes, to_cubes, unmix_cubes


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 6, 6, 6), (4, 2, 6, 12, 18)])
def test_cutting_and_putting_together_is_the_identity(shape: tuple[int, ...], k: int) -> None:
    volumes = torch.randn(shape)
    cubes = to_cubes(volumes, k)
    assert cubes.shape == (k**3, shape[0], shape[1], *(side // k for side in shape[2:]))
    assert torch.equal(from_cubes(cubes, k), volumes)


def test_cube_i_j_l_is_at_i_plus_3_j_plus_9_l() -> None:
    volumes = torch.arange(6 * 6 * 6).reshape(1, 1, 6, 6, 6)
    cubes = to_cubes(volumes, 3)
    for i, j, place in ((0, 0, 0), (1, 0, 0), (0, 2, 1), (2, 1, 2)):
        expected = volumes[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * place : 2 * place + 2]
        assert torch.equal(cubes[i + 3 * j + 9 * place, 0, 0], expected)


@pytest.mark.parametrize("volumes", [1, 2, 5])
def test_unmixing_undoes_mixing(volumes: int) -> None:
    torch.manual_seed(volumes)
    batch = torch.randn(volumes, 2, 6, 6, 6)
    orders = draw_orders(27, volumes)
    assert torch.equal(unmix_cubes(mix_cubes(batch, orders, 3), orders, 3), batch)


def test_a_mixed_volume_has_every_cube_in_its_own_place() -> None:
    torch.manual_seed(0)
    place = to_cubes(torch.zeros(4, 1, 6, 6, 6), 3)
    place += torch.arange(27).reshape(27, 1, 1, 1, 1, 1)
    batch = from_cubes(place, 3)  # every voxel holds the number of its place
    volume = torch.arange(4).reshape(4, 1, 1, 1, 1).expand(4, 1, 6, 6, 6).float()  # ... and of its volume
    orders = draw_orders(27, 4)
    assert torch.equal(mix_cubes(batch, orders, 3), batch)
    mixed = to_cubes(mix_cubes(volume, orders, 3), 3)[:, :, 0, 0, 0, 0]
    assert torch.equal(mixed, orders.float())
    assert all(sorted(row) == [0, 1, 2, 3] for row in orders.tolist()), "no cube is lost, none is there twice"
    assert (orders != torch.arange(4)).any()
