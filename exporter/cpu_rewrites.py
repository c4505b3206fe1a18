"""Replacement of two kinds of layers by equivalent ones for which inference engines have fast code on CPUs.

Inference engines store the channels of a voxel contiguously. Two layers of 3D networks break this order or have no fast
implementation:

- Group normalisation is exported as a normalisation over a reshaped tensor, and each reshape reorders the whole tensor.
  Computed from the mean and variance of each channel, which are combined per group, it reorders nothing.
- A strided transposed convolution is run in float32 even between 8-bit layers. It becomes an 8-bit one if it is written
  as a convolution that computes all of a voxel's children as channels, which are then rearranged in space (sub-pixel
  convolution: Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?").
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SPACE = (2, 3, 4)


def replace_group_norms(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` whose group norms do not reorder their input; ``network`` itself if it has none."""
    return _replaced(network, nn.GroupNorm, ChannelwiseGroupNorm)


def replace_transposed_convolutions(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` with sub-pixel convolutions in place of strided transposed convolutions.

    It is ``network`` itself if it has none.
    """
    return _replaced(network, nn.ConvTranspose3d, SubpixelConvolution, SubpixelConvolution.can_replace)


class ChannelwiseGroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) computed from the mean and variance of each channel of (B, C, X, Y, Z).

    The variance of a group is the mean variance of its channels plus the variance of their means.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Copy a layer's groups and parameters."""
        super().__init__()
        self._shape = (1, norm.num_groups, norm.num_channels // norm.num_groups, 1, 1)
        self._eps = norm.eps
        self.register_buffer("weight", torch.ones(norm.num_channels) if norm.weight is None else norm.weight.detach())
        self.register_buffer("bias", torch.zeros(norm.num_channels) if norm.bias is None else norm.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, C, X, Y, Z)."""
        groups = (-1, *self._shape[1:])
        mean = x.mean(SPACE, keepdim=True)
        centred = x - mean
        variance = (centred * centred).mean(SPACE, keepdim=True)
        means = mean.reshape(groups)
        centre = means.mean(2, keepdim=True)
        apart = means - centre
        spread = (variance.reshape(groups) + apart * apart).mean(2, keepdim=True)
        scale = torch.rsqrt(spread + self._eps) * self.weight.reshape(self._shape)
        shift = self.bias.reshape(self._shape) - centre * scale
        channels = (-1, self._shape[1] * self._shape[2], 1, 1, 1)
        return x * scale.reshape(channels) + shift.reshape(channels)


class SubpixelConvolution(nn.Module):
    """A transposed convolution as a convolution to the children of each voxel, which are then rearranged in space.

    Along an axis with stride s and padding p, output o = s q + r is the sum over d of input q - d times the kernel's
    entry s d + r + p. Hence each of the s remainders r is a convolution over d with its own entries of the kernel.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.ConvTranspose3d) -> None:
        """Copy the parameters of a layer for which :meth:`can_replace` is true."""
        super().__init__()
        kernel, self._stride, padding = layer.kernel_size, layer.stride, _three(layer.padding)
        taps = [_taps(k, s, p) for k, s, p in zip(kernel, self._stride, padding, strict=True)]
        inputs, self._outputs = layer.in_channels, layer.out_channels
        weight = torch.zeros(self._outputs, *self._stride, inputs, *(last - first + 1 for first, last in taps))
        for remainders in product(*(range(s) for s in self._stride)):
            for tap in product(*(range(side) for side in weight.shape[5:])):
                entry = [
                    s * (last - t) + r + p
                    for s, (_, last), t, r, p in zip(self._stride, taps, tap, remainders, padding, strict=True)
                ]
                if all(0 <= e < k for e, k in zip(entry, kernel, strict=True)):
                    here: tuple[Any, ...] = (slice(None), *remainders, slice(None), *tap)
                    weight[here] = layer.weight.detach()[:, :, entry[0], entry[1], entry[2]].T
        self.register_buffer("weight", weight.reshape(-1, *weight.shape[4:]))
        bias = torch.zeros(self._outputs) if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias.repeat_interleave(prod(self._stride)))
        # torch pads the last axis first.
        self._padding = [side for first, last in reversed(taps) for side in (last, -first)]

    @staticmethod
    def can_replace(layer: nn.ConvTranspose3d) -> bool:
        """Return True if a layer is strided, without groups or dilation, and scales a volume by exactly its stride.

        The kernel must differ from the stride, too, so that the outputs of neighbouring voxels overlap.
        """
        padding, more = _three(layer.padding), _three(layer.output_padding)
        exact = all(
            k - 2 * p + o == s for k, p, o, s in zip(layer.kernel_size, padding, more, layer.stride, strict=True)
        )
        plain = layer.groups == 1 and set(layer.dilation) == {1} and max(layer.stride) > 1
        return plain and exact and tuple(layer.kernel_size) != tuple(layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, K, sX, sY, sZ)."""
        children = functional.conv3d(functional.pad(x, self._padding), self.weight, self.bias)
        batch, _, *shape = children.shape
        apart = children.reshape(batch, self._outputs, *self._stride, *shape).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x_, y, z = (s * n for s, n in zip(self._stride, shape, strict=True))
        return apart.reshape(batch, self._outputs, x_, y, z)


def _taps(kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Return the smallest and the largest d for which a remainder has an entry of the kernel."""
    first = min(-((r + padding) // stride) for r in range(stride))
    return first, max((kernel - 1 - r - padding) // stride for r in range(stride))


def _three(sides: object) -> tuple[int, int, int]:
    assert isinstance(sides, tuple)
    x, y, z = sides
    return (x, y, z)


def _replaced(
    network: nn.Module, old: type[nn.Module], new: Callable[..., nn.Module], which: Callable[..., bool] | None = None
) -> nn.Module:
    def wanted(module: nn.Module) -> bool:
        return isinstance(module, old) and (which is None or which(module))

    if not any(wanted(module) for module in network.modules()):
        return network
    out = copy.deepcopy(network)
    for parent in list(out.modules()):
        for name, child in list(parent.named_children()):
            if wanted(child):
                setattr(parent, name, new(child))
    return new(out) if wanted(out) else out
