"""The protocol that every engine follows: run windows, then add what they gave to the slab that is being blended.

Two steps, so that an engine on a GPU can keep windows and slab there and hand over only finished voxels, and so that
one batch can be blended while the network is at the next. The NumPy methods of :class:`Engine` are the reference that
every other engine is held to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.slab import Activation, Slab, SlabPlan

Start = tuple[int, int, int]


class Engine(ABC):
    """Runs windows through one network.

    ``run`` returns a handle that only this engine understands; the slab is likewise the engine's own. The caller runs
    the windows of a volume in the slab's order, adds each with :meth:`accumulate`, and after each band reads
    :meth:`completed` and calls :meth:`advance`.
    """

    name: str
    device: str
    max_pending: int = 1  # batches that are worth starting before the first of them is read

    @abstractmethod
    def run(self, windows: NDArray[np.float32]) -> Any:
        """Start the network on windows (B, C, *window); the handle stands for their logits (B, K, *window).

        An engine may still be computing when it returns. A handle, and the memory of ``windows``, are in use until the
        same thread has called ``run`` more than ``max_pending`` times more.
        """

    @abstractmethod
    def logits(self, handle: Any) -> NDArray[np.float32]:
        """The logits (B, K, *window) behind a handle, in host memory.

        Raises:
            EngineError: the network failed.
        """

    def wait(self, handle: Any) -> None:  # noqa: B027 - most engines are done when `run` returns
        """Return when the network is done with a batch, for engines that compute in the processor's other threads."""

    def wrap_logits(self, logits: NDArray[np.float32]) -> Any:
        """A handle for logits (B, K, *window) that are known already."""
        return logits

    def open_slab(self, plan: SlabPlan, outputs: int, activation: Activation) -> Any:
        """An empty slab; ``activation`` is applied to the ``outputs`` logits of a window before they are added."""
        return Slab(plan, outputs, activation, lambda shape: np.zeros(shape, dtype=np.float32))

    def accumulate(self, slab: Any, handle: Any, row: int, start: Start, weights: NDArray[np.float32]) -> None:
        """Add ``weights * activation(logits)`` of window ``row`` of a batch to the slab, at ``start`` in the volume."""
        values = apply_activation(self.logits(handle)[row], slab.activation)
        for target, part, place in slab.parts(values, start):
            weight = weights[place[1:]]
            product = np.empty_like(weight)  # one class at a time stays in the processor's cache
            for sums, new in zip(target, part, strict=True):
                np.multiply(new, weight, out=product)
                sums += product

    def completed(self, slab: Any, planes: int, rows: int) -> Iterator[NDArray[np.float32]]:
        """Sums that no later window changes, in host memory, in parts that follow one another along the outer axis.

        They may be views and hold until :meth:`advance`.

        Args:
            slab: from :meth:`open_slab`.
            planes: how many of the present row's planes are finished ...
            rows: ... on how many of the present band's rows.
        """
        yield from slab.completed(planes, rows)

    def advance(self, slab: Any, planes: int, rows: int) -> None:
        """Forget what :meth:`completed` told, and move the slab on to the next band."""
        slab.advance(planes, rows)

    def close(self) -> None:  # noqa: B027 - most engines have nothing to give back
        """Give back what the engine holds on a device."""


def apply_activation(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Softmax or sigmoid over the first axis of (K, ...), or the logits themselves."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float32)
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=0, keepdims=True), dtype=np.float32)
