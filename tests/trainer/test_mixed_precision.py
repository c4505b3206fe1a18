"""What mixed precision may not change: the gradients of convolutions, however narrow their input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from trainer.mixed_precision import mixed_precision

NARROW = [
    (nn.Conv2d, (1, 1), 3, 2, 16, 32),
    (nn.Conv2d, (3, 3), 7, 4, 16, 32),
    (nn.Conv3d, (2, 8, 7), 3, 1, 32, 32),
    (nn.Conv3d, (2, 2, 2), 3, 1, 3, 16),
    (nn.ConvTranspose3d, (5, 8, 1), 3, 2, 4, 64),
]


@pytest.fixture
def half() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("kind", "shape", "kernel", "stride", "inputs", "outputs"), NARROW)
def test_a_narrow_convolution_has_the_gradient_of_single_precision(
    half: Accelerator, kind: Any, shape: tuple[int, ...], kernel: int, stride: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    convolution = kind(inputs, outputs, kernel, stride, kernel // 2)
    images = torch.randn(4, inputs, *shape)
    exact = convolution(images)
    slope = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, convolution.weight, slope)[0]
    for _ in range(5):
        spoil_memory()
        with mixed_precision(half):
            found = convolution(images)
        got = torch.autograd.grad(found, convolution.weight, slope.to(found.dtype))[0]
        torch.testing.assert_close(got, wanted)


def spoil_memory() -> None:
    """Leave NaN where the next tensors are likely to lie."""
    sizes = [64, 128, 256, 512, 1024, 4096, 16384] * 20
    kept = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in sizes]
    del kept


def test_the_rest_is_computed_in_half_precision(half: Accelerator) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with mixed_precision(half):
        convolved = network[0](torch.randn(2, 1, 3, 3))
        decided = network(torch.randn(2, 1, 3, 3))
    assert (convolved.dtype, decided.dtype) == (torch.float32, torch.bfloat16)
