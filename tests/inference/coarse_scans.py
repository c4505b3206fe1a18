"""Scans, networks and manifests for the tests of the coarse pass."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.coarse_settings import CoarsePassProof, CoarsePassSettings
from semiseg.bundle.manifest import Manifest
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.inference.timing import Timing
from tests.networks import Network, NumpyEngine

WINDOW = (8, 8, 8)
LARGE = (36, 32, 28)
PROOF = CoarsePassProof(
    precision="fp32",
    engine="numpy",
    scans=1,
    scans_with_skips=1,
    mean_dice=1,
    least_dice=1,
    lost_components=0,
    window_ratio=2.0,
)
SPARSE = CoarsePassSettings(kind="sparse_windows", threshold=0.1, margin=2.0, proofs=(PROOF,))
HALF = CoarsePassSettings(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.1, margin=2.0, proofs=(PROOF,))
KINDS = [(a, m) for a in ("softmax", "sigmoid") for m in ("logits", "probs")]


def bright(outputs: int, *, regions: bool = False) -> Network:
    """Segments are what is brighter than 1, 2, ...; the place in the window moves each logit by up to 0.4."""

    def network(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        place = 0.4 * np.sin(np.arange(np.prod(windows.shape[2:]), dtype=np.float32)).reshape(windows.shape[2:])
        v = windows[:, 0]
        if regions:
            rows = [8 * (v - k - 0.75) + np.roll(place, k) for k in range(outputs)]
        else:
            rows = [8 * (k * v - k * (k + 1) / 2 + k / 4) + np.roll(place, k) for k in range(outputs)]
        return np.stack(rows, axis=1).astype(np.float32)

    return network


def network_of(manifest: Manifest) -> Network:
    return bright(manifest.outputs, regions=manifest.activation == "sigmoid")


def scan(shape: tuple[int, int, int] = LARGE, seed: int = 0) -> NDArray[np.float32]:
    """Noise without a segment."""
    return np.random.default_rng(seed).normal(0, 0.05, (1, *shape)).astype(np.float32)


def with_box(array: NDArray[np.float32], at: tuple[int, int, int], side: int, value: float = 1.0) -> None:
    x, y, z = (slice(a, a + side) for a in at)
    array[0, x, y, z] += value


def both(
    manifest: Manifest, array: NDArray[np.float32], network: Network | None = None, **options: Any
) -> tuple[NDArray[Any], NDArray[Any], Timing]:
    """Return the results with and without the coarse pass, and the timing of the first."""
    network = network or network_of(manifest)
    timing = Timing()
    spacing = options.pop("spacing", (1.0, 1.0, 1.0))
    segmenter = Segmenter(manifest, NumpyEngine(network), SlidingWindowOptions(**options))
    found = segmenter.segment_preprocessed(array, spacing=spacing, timing=timing)
    full = segmenter.segment_preprocessed(array, spacing=spacing, full=True)
    return found, full, timing


def decided(segmenter: Segmenter, array: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels all of whose windows are needed, counted window by window."""
    grid = segmenter._passes.grid(array)
    planned, run = np.zeros(grid.shape, int), np.zeros(grid.shape, int)
    for index in itertools.product(*(range(len(along)) for along in grid.starts)):
        starts = [grid.starts[axis][k] for axis, k in enumerate(index)]
        box = tuple(slice(s, s + w) for s, w in zip(starts, grid.window, strict=True))
        planned[box] += 1
        run[box] += int(needed[index])
    return np.asarray(planned == run)


def having(manifest: Manifest, coarse: CoarsePassSettings, **changes: Any) -> Manifest:
    return manifest.model_copy(update={"coarse_pass": coarse.model_copy(update=changes)})


class RecordedProgress:
    """Progress that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
