"""The interface of all engines: run the network on windows, then add the results to the slab that is being blended.

These are two steps so that an engine on a GPU can keep windows and slab in its own memory and return only completed
voxels, and so that one batch can be blended while the network processes the next. The NumPy methods of :class:`Engine`
are the reference for all other engines.
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
    """Base class of engines, each of which runs one network.

    Handles that ``run`` returns and slabs are opaque to the caller. The caller runs the windows of a volume in the
    slab's order, adds each with :meth:`accumulate`, and after each band reads :meth:`completed` and calls
    :meth:`advance`.
    """

    name: str
    device: str
    max_pending: int = 1  # number of batches to start before the first of them is read

    @abstractmethod
    def run(self, windows: NDArray[np.float32]) -> Any:
        """Start the network on windows (B, C, *window), and return a handle for their logits (B, K, *window).

        The engine may still be computing when this method returns. A handle and the memory of ``windows`` remain in use
        until the same thread has called ``run`` more than ``max_pending`` further times.
        """

    @abstractmethod
    def logits(self, handle: Any) -> NDArray[np.float32]:
        """Return the logits (B, K, *window) of a handle in host memory.

        Raises:
            EngineError: The network failed.
        """

    def wait(self, handle: Any) -> None:  # noqa: B027 - most engines are done when `run` returns
        """Wait until the network is done with a batch, for engines that compute in other threads."""

    def wrap_logits(self, logits: NDArray[np.float32]) -> Any:
        """Return a handle for given logits (B, K, *window)."""
        return logits

    def open_slab(self, plan: SlabPlan, outputs: int, activation: Activation) -> Any:
        """Return an empty slab; ``activation`` is applied to the ``outputs`` logits before they are added."""
        return Slab(plan, outputs, activation, lambda shape: np.zeros(shape, dtype=np.float32))

    def accumulate(self, slab: Any, handle: Any, row: int, start: Start, weights: NDArray[np.float32]) -> None:
        """Add ``weights * activation(logits)`` of window ``row`` of a batch to the slab, at ``start`` in the volume."""
        values = apply_activation(self.logits(handle)[row], slab.activation)
        for target, part, place in slab.parts(values, start):
            weight = weights[place[1:]]
            product = np.empty_like(weight)  # one class at a time, which fits into the processor's cache
            for sums, new in zip(target, part, strict=True):
                np.multiply(new, weight, out=product)
                sums += product

    def completed(self, slab: Any, planes: int, rows: int) -> Iterator[NDArray[np.float32]]:
        """Yield the sums that no later window changes, in host memory, in parts along the outer axis.

        The arrays may be views, which are valid until :meth:`advance`.

        Args:
            slab: Slab from :meth:`open_slab`.
            planes: Number of completed planes of the present row, along the outer axis.
            rows: Number of completed rows of the present band, along the middle axis.
        """
        yield from slab.completed(planes, rows)

    def advance(self, slab: Any, planes: int, rows: int) -> None:
        """Discard the voxels that :meth:`completed` returned, and move the slab to the next band."""
        slab.advance(planes, rows)

    def close(self) -> None:  # noqa: B027 - most engines have nothing to release
        """Release the engine's resources on a device."""


def apply_activation(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Apply softmax or sigmoid over the first axis of (K, ...); with ``none`` return the logits unchanged."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float32)
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=0, keepdims=True), dtype=np.float32)
