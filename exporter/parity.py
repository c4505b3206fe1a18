"""Comparison of a graph with the trained network on windows of real scans."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ExportError
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Parity, Precision
from semiseg.engines.engine import Engine
from semiseg.inference.windows import padding_for
from semiseg.volumes.volume import format_shape


def measure_parity(
    manifest: Manifest, reference: Engine, candidate: Engine, windows: Iterable[NDArray[np.float32]]
) -> Parity:
    """Run both engines on ``windows``, each (C, X, Y, Z) and all of one size, and compare over all their voxels.

    Raises:
        ExportError: There is no window, or the two engines return arrays of different shapes.
    """
    largest, count, size = 0.0, 0, manifest.window
    overlap = np.zeros(len(manifest.segments))
    drawn = np.zeros(len(manifest.segments))
    for window in windows:
        expected = reference.logits(reference.run(window[None]))
        found = candidate.logits(candidate.run(window[None]))
        if expected.shape != found.shape:
            raise ExportError(f"The exported graph returns shape {found.shape}, the network {expected.shape}.")
        largest = float(np.maximum(largest, np.abs(expected - found).max()))  # NaN stays NaN, max() would lose it
        for k, (a, b) in enumerate(zip(_masks(expected, manifest), _masks(found, manifest), strict=True)):
            overlap[k] += 2.0 * np.count_nonzero(a & b)
            drawn[k] += np.count_nonzero(a) + np.count_nonzero(b)
        count += 1
        _, x, y, z = window.shape
        size = (x, y, z)
    if count == 0:
        raise ExportError("There is no scan to compare the graph with the network on. No bundle was written.")
    dice = {s.name: float(overlap[k] / drawn[k]) for k, s in enumerate(manifest.segments) if drawn[k]}
    return Parity(engine=candidate.name, window=size, windows=count, largest_difference=largest, dice=dice)


def gate_failure(manifest: Manifest, precision: Precision, parity: Parity) -> str | None:
    """Return a sentence that says by how much a graph fails the manifest's gate; None if it passes."""
    gate = manifest.gate
    allowed, least = gate.difference, gate.dice(precision)
    too_far = precision == "fp32" and not parity.largest_difference <= allowed
    if not too_far and np.isfinite(parity.largest_difference) and parity.least_dice >= least:
        return None
    window = format_shape(parity.window)
    limit = f" (allowed {allowed:g})" if precision == "fp32" else ""
    return (
        f"The {precision} graph does not compute what the network computes, run by {parity.engine} on {parity.windows} "
        f"windows of {window}: logits differ by up to {parity.largest_difference:.3g}{limit}, masks agree to Dice "
        f"{parity.least_dice:.5f} (at least {least:g})."
    )


def central_window(image: NDArray[np.float32], window: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the central window (C, *window) of a preprocessed scan (C, X, Y, Z), padded where the scan is smaller."""
    padded = np.pad(image, [(0, 0), *padding_for(image.shape[1:], window)], mode="edge")
    starts = [(n - w) // 2 for n, w in zip(padded.shape[1:], window, strict=True)]
    x, y, z = (slice(s, s + w) for s, w in zip(starts, window, strict=True))
    return np.ascontiguousarray(padded[:, x, y, z])


def _masks(logits: NDArray[np.float32], manifest: Manifest) -> list[NDArray[np.bool_]]:
    """Return the mask of each segment, in order."""
    if manifest.activation == "sigmoid":
        return [np.asarray(logits[:, k] >= 0) for k in range(manifest.outputs)]
    labels = logits.argmax(axis=1)
    return [np.asarray(labels == k) for k in range(1, manifest.outputs)]
