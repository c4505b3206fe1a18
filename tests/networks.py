"""Networks in NumPy whose answer for every window is exact, and the sliding window that keeps everything in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.manifest import Manifest
from semiseg.bundle.preprocessing import Intensity, Preprocessing
from semiseg.engines.engine import Engine, apply_activation
from semiseg.engines.slab import Activation, Slab, SlabPlan
from semiseg.inference.windows import starts_along, window_weights
from tests.bundles import make_threshold_bundle

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class NumpyEngine(Engine):
    """The protocol's own NumPy slab under a network that is a function of windows (B, C, *window).

    It remembers what it was asked for: ``batches`` (shape of every call) and ``slabs`` (numbers that every slab held).
    """

    name = "numpy"
    device = "cpu"

    def __init__(self, network: Network) -> None:
        self.network = network
        self.batches: list[tuple[int, ...]] = []
        self.slabs: list[int] = []

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(windows.shape)
        return self.network(windows)

    def logits(self, handle: Any) -> NDArray[np.float32]:
        return np.asarray(handle)

    def open_slab(self, plan: SlabPlan, outputs: int, activation: Activation) -> Slab:
        slab: Slab = super().open_slab(plan, outputs, activation)
        self.slabs.append(slab.voxels)
        return slab


def position_dependent_network(outputs: int) -> Network:
    """Logits that depend on the voxel, on its neighbours in the window and on the place in the window.

    A window put one voxel off, mirrored, mixed up with another of its batch or weighted wrongly gives another mask.
    """

    def network(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        place = np.sin(np.arange(np.prod(windows.shape[2:]), dtype=np.float32)).reshape(windows.shape[2:])
        first = windows[:, 0]
        near = np.roll(first, 1, axis=1) - 0.5 * np.roll(first, 1, axis=3)
        rows = [np.cos(3.0 * k + first * (k + 1)) + near * (0.3 * k) + 0.2 * np.roll(place, k) for k in range(outputs)]
        return np.stack(rows, axis=1).astype(np.float32)

    return network


def threshold_manifest(folder: Path, **changes: Any) -> Manifest:
    """The threshold bundle's manifest, for scans taken as they are, with ``changes``."""
    window: tuple[int, int, int] = changes.pop("window", (5, 4, 6))
    activation: Literal["softmax", "sigmoid"] = changes.pop("activation", "softmax")
    manifest = make_threshold_bundle(folder, window=window, activation=activation).manifest
    as_is = Preprocessing(intensity=(Intensity(clip=(0, 1), scale="window"),), padding=changes.pop("padding", "edge"))
    return Manifest.model_validate(manifest.model_copy(update={"preprocessing": as_is, **changes}).model_dump())


def reference_segmentation(
    manifest: Manifest, network: Network, array: NDArray[np.float32], overlap: float | tuple[float, ...]
) -> NDArray[Any]:
    """The reference: the decision at each voxel of :func:`reference_mean`."""
    mean = reference_mean(manifest, network, array, overlap)
    if manifest.activation == "softmax":
        values = np.asarray([0, *(s.label for s in manifest.segments)], np.uint8)
        return np.asarray(values[mean.argmax(axis=0)])
    probs = mean if manifest.average == "probs" else 1 / (1 + np.exp(-mean))
    return np.asarray(probs >= 0.5)


def reference_mean(
    manifest: Manifest, network: Network, array: NDArray[np.float32], overlap: float | tuple[float, ...]
) -> NDArray[np.float64]:
    """Pad, add every window to one volume (C, X, Y, Z) in float64, divide by the counts."""
    window = manifest.window
    short = [max(0, w - n) for n, w in zip(array.shape[1:], window, strict=True)]
    padding = [(0, 0), *((s // 2, s - s // 2) for s in short)]
    padded = np.pad(array, padding, mode="edge" if manifest.preprocessing.padding == "edge" else "constant")
    full = padded.shape[1:]
    sums, counts = np.zeros((manifest.outputs, *full)), np.zeros(full)
    activation: Activation = manifest.activation if manifest.average == "probs" else "none"
    weights = window_weights(window, manifest.blending)
    shares = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    starts = [starts_along(n, w, share) for n, w, share in zip(full, window, shares, strict=True)]
    for start in itertools.product(*starts):
        place = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        logits = network(padded[(slice(None), *place)][None])[0]
        sums[(slice(None), *place)] += apply_activation(logits, activation) * weights
        counts[place] += weights
    mean = sums / counts
    inner = tuple(slice(before, before + n) for (before, _), n in zip(padding[1:], array.shape[1:], strict=True))
    return np.asarray(mean[(slice(None), *inner)])
