"""Ranges of size, spacing, orientation and intensity of the training scans, to detect scans out of distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from semiseg.volumes.volume import Volume

PERCENTILES = (0.5, 50.0, 99.5)


class Range(BaseModel):
    """Range of values over the training scans, per axis or per percentile.

    Attributes:
        minimum: Smallest values.
        median: Median values.
        maximum: Largest values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: tuple[float, ...]
    median: tuple[float, ...]
    maximum: tuple[float, ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> Range:
        """Compute the range over ``rows``, one per scan."""
        values = np.asarray(rows, dtype=np.float64)
        low, middle, high = values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
        return cls(minimum=_rounded(low), median=_rounded(middle), maximum=_rounded(high))


def format_range(low: float, high: float) -> str:
    """Format a range as ``1.06 to 1.9``, or as one number if both are equal to three digits."""
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


class Fingerprint(BaseModel):
    """Ranges over all training scans, labelled and unlabelled, along the axes of the preprocessing's orientation.

    Attributes:
        scans: Number of scans.
        shape: Size in voxels.
        spacing: Voxel spacing in mm.
        extent: Size of the whole scan in mm.
        orientations: Number of files by the nearest anatomical directions of their axes.
        intensity: For each channel, the 0.5th, 50th and 99.5th percentiles of each scan's raw values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scans: int
    shape: Range
    spacing: Range
    extent: Range | None = None
    orientations: dict[str, int]
    intensity: dict[str, Range]

    @classmethod
    def collect(cls, scans: Iterable[Mapping[str, Volume]], orientation: str) -> Fingerprint:
        """Collect the ranges over ``scans``, each given as its channels, in one pass with one scan in memory."""
        shapes: list[tuple[float, ...]] = []
        spacings: list[tuple[float, ...]] = []
        extents: list[tuple[float, ...]] = []
        codes: dict[str, int] = {}
        intensity: dict[str, list[list[float]]] = {}
        for channels in scans:
            first = next(iter(channels.values()))
            order = axis_order(first.axcodes, orientation)
            shapes.append(tuple(float(first.shape[a]) for a in order))
            spacings.append(tuple(first.spacing[a] for a in order))
            extents.append(tuple(first.shape[a] * first.spacing[a] for a in order))
            codes[first.axcodes] = codes.get(first.axcodes, 0) + 1
            for name, volume in channels.items():
                intensity.setdefault(name, []).append(percentiles_of(volume))
        return cls(
            scans=len(shapes),
            shape=Range.from_rows(shapes),
            spacing=Range.from_rows(spacings),
            extent=Range.from_rows(extents),
            orientations=dict(sorted(codes.items())),
            intensity={name: Range.from_rows(rows) for name, rows in intensity.items()},
        )


def percentiles_of(volume: Volume) -> list[float]:
    """Return the percentiles :data:`PERCENTILES` of a volume's raw values."""
    found: list[float] = np.percentile(volume.array, PERCENTILES).tolist()
    return found


def axis_order(codes: str, orientation: str) -> list[int]:
    """Return, for each axis of ``orientation``, the index of the grid axis along it, in either direction."""
    pairs = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}
    kinds = [pairs[c] for c in codes]
    return [kinds.index(pairs[c]) for c in orientation]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") for v in values)
