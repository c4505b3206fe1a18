"""Volumes to slices and back, along each axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.slices import from_slices, to_slices

SIZES = st.integers(1, 5)


@given(st.integers(1, 3), st.integers(1, 3), SIZES, SIZES, SIZES, st.sampled_from([0, 1, 2]))
def test_slicing_and_stacking_is_the_identity(n: int, c: int, x: int, y: int, z: int, axis: int) -> None:
    volumes = torch.arange(n * c * x * y * z).reshape(n, c, x, y, z)
    assert torch.equal(from_slices(to_slices(volumes, axis), n, axis), volumes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_k_of_volume_i_is_row_i_times_depth_plus_k(axis: int) -> None:
    volumes = torch.randn(2, 3, 4, 5, 6)
    slices = to_slices(volumes, axis)
    depth = volumes.shape[2 + axis]
    in_plane = [n for a, n in enumerate((4, 5, 6)) if a != axis]
    assert slices.shape == (2 * depth, 3, *in_plane)
    for i in range(2):
        for k in range(depth):
            assert torch.equal(slices[i * depth + k], volumes[i].select(1 + axis, k))
