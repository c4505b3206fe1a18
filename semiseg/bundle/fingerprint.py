"""What the training scans looked like, so that a scan of another kind can be noticed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from semiseg.volumes.volume import Volume

PERCENTILES = (0.5, 50.0, 99.5)


class Range(BaseModel):
    """Values over the training scans, per axis or per percentile.

    Attributes:
        minimum: the smallest.
        median: the median.
        maximum: the largest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: tuple[float, ...]
    median: tuple[float, ...]
    maximum: tuple[float, ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> Range:
        """Over ``rows``, one per scan."""
        values = np.asarray(rows, dtype=np.float64)
        low, middle, high = values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
        return cls(minimum=_rounded(low), median=_rounded(middle), maximum=_rounded(high))


def format_range(low: float, high: float) -> str:
    """``1.06 to 1.9``, or one number where both are the same to three digits."""
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


class Fingerprint(BaseModel):
    """Ranges over all training scans, labelled and unlabelled, along the axes of the preprocessing's orientation.

    Attributes:
        scans: how many.
        shape: voxels.
        spacing: mm.
        extent: of the whole scan, mm.
        orientations: how many files had which nearest anatomical directions of their axes.
        intensity: per channel, the 0.5th, 50th and 99.5th percentile of each scan's raw values.
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
        """Collect over ``scans``, each given as its channels; one pass, one scan in memory at a time."""
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
    """The three percentiles of a volume's raw values."""
    found: list[float] = np.percentile(volume.array, PERCENTILES).tolist()
    return found


def axis_order(codes: str, orientation: str) -> list[int]:
    """Which axis of a grid with ``codes`` lies along each axis of ``orientation``, either way round."""
    pairs = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}
    kinds = [pairs[c] for c in codes]
    return [kinds.index(pairs[c]) for c in orientation]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") for v in values)
