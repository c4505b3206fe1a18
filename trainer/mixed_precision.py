"""Mixed precision, with convolutions in float32 where their bfloat16 gradients are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode

CONVOLUTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        torch.conv_transpose1d,
        torch.conv_transpose2d,
        torch.conv_transpose3d,
        torch.convolution,
    }
)


@contextmanager
def mixed_precision(accelerator: Accelerator) -> Iterator[None]:
    """Compute in the accelerator's precision; on a CPU, convolutions stay in float32.

    On processors with AVX-512, oneDNN in PyTorch 2.13 computes wrong gradients for the weights of a bfloat16
    convolution if the input is narrow, such as a kernel of 3 on 2 x 8 x 7 voxels, or of 7 with stride 4 on 3 x 3
    pixels. It reads beyond the input, so that the gradient depends on unrelated memory, and sometimes writes beyond the
    result, which crashes the process. All other operations that autocast runs in bfloat16 gave correct results.
    """
    with accelerator.autocast():
        if accelerator.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            yield
            return
        with _ExactConvolutions():
            yield


class _ExactConvolutions(TorchFunctionMode):
    """Function mode that disables the CPU's autocast for convolutions."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, with tensors in float32 for a convolution."""
        given = kwargs or {}
        if func not in CONVOLUTIONS:
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_single, args), **{name: _single(value) for name, value in given.items()})


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value
