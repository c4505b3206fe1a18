"""The protocol that every engine follows: run windows, then add what they gave to the slab that is being blended.

Two steps, so that an engine on a GPU can keep windows and slab there and hand over only finished voxels. The NumPy
methods of :class:`Engine` are the reference that every other engine is held to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["none", "softmax", "sigmoid"]
Start = tuple[int, int, int]


class Engine(ABC):
    """Runs windows through one network.

    ``run`` returns a handle that only this engine understands; the slab is likewise the engine's own. The caller moves
    along axis 0 of the volume: :meth:`open_slab`, any number of :meth:`accumulate`, and :meth:`finish` for the planes
    that no later window touches.
    """

    name: str
    device: str

    @abstractmethod
    def run(self, windows: NDArray[np.float32]) -> Any:
        """Start the network on windows (B, C, *window); the handle stands for their logits (B, K, *window)."""

    @abstractmethod
    def logits(self, handle: Any) -> NDArray[np.float32]:
        """The logits (B, K, *window) behind a handle, in host memory."""

    def open_slab(self, shape: tuple[int, int, int, int], activation: Activation) -> Any:
        """Zeros (K, X, Y, Z) to blend into; ``activation`` is applied to each window before it is added."""
        return Slab(np.zeros(shape, dtype=np.float32), activation)

    def accumulate(self, slab: Any, handle: Any, starts: Sequence[Start], weights: NDArray[np.float32]) -> None:
        """Add ``weights * activation(logits)`` of each window to the slab at its start (relative to the slab).

        ``handle`` may hold more windows than ``starts`` (a padded batch); the surplus is ignored.
        """
        for values, (x, y, z) in zip(self.logits(handle), starts, strict=False):
            _, wx, wy, wz = values.shape
            slab.values[:, x : x + wx, y : y + wy, z : z + wz] += activated(values, slab.activation) * weights

    def finish(self, slab: Any, planes: int) -> NDArray[np.float32]:
        """Hand over the first ``planes`` planes (K, planes, Y, Z) and move the rest of the slab up in their place."""
        done: NDArray[np.float32] = slab.values[:, :planes].copy()
        rest = slab.values.shape[1] - planes
        slab.values[:, :rest] = slab.values[:, planes:].copy()
        slab.values[:, rest:] = 0
        return done

    def close(self) -> None:  # noqa: B027 - most engines have nothing to give back
        """Give back what the engine holds on a device."""


class Slab:
    """Host memory that windows are blended into: ``values`` (K, X, Y, Z)."""

    def __init__(self, values: NDArray[np.float32], activation: Activation) -> None:
        self.values = values
        self.activation = activation


def activated(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Softmax or sigmoid over the first axis of (K, ...), or the logits themselves."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float32)
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=0, keepdims=True), dtype=np.float32)
