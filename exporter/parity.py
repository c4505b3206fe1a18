"""Proof that the graph computes what the trained network computes, on windows of real scans."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ExportError
from semiseg.bundle.manifest import Manifest, Parity
from semiseg.engines.engine import Engine
from semiseg.inference.windows import padding_for

LARGEST_DIFFERENCE = 1e-2  # of logits; float32 round-off through a UNet stays below 1e-3
LEAST_DICE = 0.999


def compare(manifest: Manifest, reference: Engine, candidate: Engine, windows: Iterable[NDArray[np.float32]]) -> Parity:
    """Run both engines on ``windows`` (each (C, *window)) and measure.

    Returns:
        Largest absolute difference of logits, and the smallest Dice over segments between the two masks, voxels of all
        windows together; a segment that neither draws does not count.

    Raises:
        ExportError: the two disagree by more than :data:`LARGEST_DIFFERENCE` or less than :data:`LEAST_DICE`, or there
            is no window to compare them on.
    """
    largest, count = 0.0, 0
    overlap = np.zeros(manifest.outputs)
    sizes = np.zeros(manifest.outputs)
    for window in windows:
        expected = reference.logits(reference.run(window[None]))
        found = candidate.logits(candidate.run(window[None]))
        if expected.shape != found.shape:
            raise ExportError(f"The exported graph returns shape {found.shape}, the network {expected.shape}.")
        largest = float(np.maximum(largest, np.abs(expected - found).max()))  # NaN stays NaN, max() would lose it
        for k, (a, b) in enumerate(zip(_masks(expected, manifest), _masks(found, manifest), strict=True)):
            overlap[k] += 2.0 * np.count_nonzero(a & b)
            sizes[k] += np.count_nonzero(a) + np.count_nonzero(b)
        count += 1
    if count == 0:
        raise ExportError("There is no scan to compare the graph with the network on. No bundle was written.")
    drawn = sizes > 0
    dice = float((overlap[drawn] / sizes[drawn]).min()) if drawn.any() else 1.0
    if not largest <= LARGEST_DIFFERENCE or dice < LEAST_DICE:
        raise ExportError(
            f"The exported graph does not compute what the network computes: logits differ by up to {largest:.3g} "
            f"(allowed {LARGEST_DIFFERENCE}), masks agree to Dice {dice:.5f} (at least {LEAST_DICE}) on {count} "
            "windows. No bundle was written."
        )
    return Parity(windows=count, largest_difference=largest, dice=dice, engine=candidate.name)


def windows_of(image: NDArray[np.float32], window: tuple[int, int, int]) -> NDArray[np.float32]:
    """The middle window (C, *window) of a preprocessed scan (C, X, Y, Z), padded where the scan is smaller."""
    padded = np.pad(image, [(0, 0), *padding_for(image.shape[1:], window)], mode="edge")
    starts = [(n - w) // 2 for n, w in zip(padded.shape[1:], window, strict=True)]
    x, y, z = (slice(s, s + w) for s, w in zip(starts, window, strict=True))
    return np.ascontiguousarray(padded[:, x, y, z])


def cached_scans(cache: Path, count: int, channels: int) -> list[NDArray[np.float32]]:
    """Up to ``count`` preprocessed scans (``channels``, X, Y, Z) that training left in its cache, evenly picked.

    Runs may share a cache, so scans with another number of channels may lie beside this run's own.

    Raises:
        ExportError: there is none.
    """
    scans = [np.load(file, mmap_mode="r") for file in sorted(cache.glob("*-image.npy"))]
    scans = [scan for scan in scans if scan.shape[0] == channels]
    if not scans:
        raise ExportError(
            f"{cache} holds no preprocessed scans to compare the graph with the network on; name the cache that "
            "training used with --cache, or the dataset with --data."
        )
    pick = np.linspace(0, len(scans) - 1, min(count, len(scans))).astype(int)
    return [np.asarray(scans[i]) for i in sorted(set(pick.tolist()))]


def _masks(logits: NDArray[np.float32], manifest: Manifest) -> list[NDArray[np.bool_]]:
    if manifest.activation == "sigmoid":
        return [np.asarray(logits[:, k] >= 0) for k in range(manifest.outputs)]
    labels = logits.argmax(axis=1)
    return [np.asarray(labels == k) for k in range(manifest.outputs)]
