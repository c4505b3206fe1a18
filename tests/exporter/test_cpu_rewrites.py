"""What is replaced for processors computes what it replaces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exporter.cpu_rewrites import (
    ChannelwiseGroupNorm,
    SubpixelConvolution,
    replace_group_norms,
    replace_transposed_convolutions,
)

PLAIN = {"stride": 1, "padding": 1}


def largest_difference(a: nn.Module, b: nn.Module, channels: int, seed: int = 0) -> float:
    torch.manual_seed(seed)
    windows = 3 * torch.randn(2, channels, 3, 5, 4) + 7
    with torch.inference_mode():
        expected = a(windows)
        assert expected.std() > 0.01
        return float((b(windows) - expected).abs().max() / expected.abs().max())


@settings(deadline=None, max_examples=80)
@given(st.tuples(*[st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2))] * 3), st.booleans())
def test_a_subpixel_convolution_is_the_transposed_one(axes: tuple[tuple[int, int, int], ...], bias: bool) -> None:
    kernel, stride, padding = zip(*axes, strict=True)
    more = tuple(s - k + 2 * p for k, s, p in axes)  # so that each voxel gets `stride` children
    if not all(0 <= o < s for o, s in zip(more, stride, strict=True)):
        return
    layer = nn.ConvTranspose3d(4, 3, kernel, stride=stride, padding=padding, output_padding=more, bias=bias)
    assert SubpixelConvolution.can_replace(layer) == (max(stride) > 1 and kernel != stride)
    assert largest_difference(layer, SubpixelConvolution(layer), 4) < 1e-5


@pytest.mark.parametrize(
    "other",
    [
        {"kernel_size": 2, "stride": 2},  # no overlap: engines are fast at it
        {"kernel_size": 3, "stride": 2, "padding": 1},  # one voxel less than twice as many
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        {"kernel_size": 3, "stride": 3, "padding": 1, "dilation": 2},
        {"kernel_size": 3, "stride": 1, "padding": 1},
    ],
)
def test_other_transposed_convolutions_stay(other: dict[str, Any]) -> None:
    network = nn.Sequential(nn.ConvTranspose3d(4, 4, **other))
    assert replace_transposed_convolutions(network) is network


@pytest.mark.parametrize(("channels", "groups", "affine"), [(8, 1, True), (8, 2, True), (8, 8, False), (6, 3, True)])
def test_a_channelwise_group_norm_is_the_group_norm(channels: int, groups: int, affine: bool) -> None:
    norm = nn.GroupNorm(groups, channels, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    assert largest_difference(norm, ChannelwiseGroupNorm(norm), channels) < 1e-5


def test_a_network_is_copied_and_not_changed() -> None:
    inner = nn.Sequential(nn.Conv3d(4, 8, 3, **PLAIN), nn.GroupNorm(2, 8), nn.ReLU())
    network = nn.Sequential(inner, nn.ConvTranspose3d(8, 3, 3, stride=2, padding=1, output_padding=1))
    kinds = [type(module) for module in network.modules()]
    other = replace_transposed_convolutions(replace_group_norms(network))
    assert [type(module) for module in network.modules()] == kinds
    found = {type(module) for module in other.modules()}
    assert {ChannelwiseGroupNorm, SubpixelConvolution} < found and not {nn.GroupNorm, nn.ConvTranspose3d} & found
    assert largest_difference(network, other, 4) < 1e-5
    alone = nn.GroupNorm(2, 4)
    assert isinstance(replace_group_norms(alone), ChannelwiseGroupNorm)
