"""Records of the calls of a network in a loss, so that terms which are added to the loss can reuse their logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class RecordedCalls:
    """The inputs and outputs of a network's calls that carry gradients, in the order in which they were made."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._made: list[tuple[Tensor, Tensor]] = []

    def record(self, images: Tensor, logits: Tensor) -> None:
        """Record a call if its logits have gradients."""
        if logits.requires_grad:
            self._made.append((images, logits))

    def logits_for(self, images: Tensor, first: int = 0) -> Tensor:
        """Return logits (N - first, K, ...) of ``images[first:]`` (N, C, ...), with gradients.

        They come from a recorded call with all of ``images`` or with just these rows. Without such a call, the network
        is called.
        """
        rows = images[first:]
        for seen, logits in self._made:
            if _is_same(seen, images):
                return logits[first:]
            if _is_same(seen, rows):
                return logits
        if len(rows):
            found: Tensor = self._network(rows)
            return found
        found = self._network(images[:1])  # a process without such a patch has to take part in sums over processes
        return found[:0]


@contextmanager
def record_calls(network: nn.Module) -> Iterator[RecordedCalls]:
    """Record the calls of a network inside the ``with``."""
    calls = RecordedCalls(network)

    def keep(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls.record(inputs[0], output)

    handle = network.register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors are the same view of the same memory."""
    return one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()
