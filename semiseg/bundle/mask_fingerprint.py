"""Ranges of the model's masks of its training scans, to detect masks that a person should inspect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from semiseg.bundle.fingerprint import Range, format_range
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.segmentation import Segmentation

VOLUME_FACTOR = 1.5
"""Factor by which a segment may be smaller or larger than the smallest and largest one in the training scans."""
COMPONENTS_FACTOR = 2
"""A segment may have this factor times the largest number of components in the training scans, plus one."""
ENTROPY_FACTOR = 1.5
"""Factor by which the entropy of a segment may exceed the largest one in the training scans."""

MaskMeasures = tuple[float, float, float]
"""Volume in ml, number of components, and mean entropy of a segment."""


class MaskFingerprint(BaseModel):
    """Ranges over the masks of training scans.

    Attributes:
        scans: Number of scans.
        segments: For each segment that was found in any scan, the ranges of its volume in ml, of its number of
            26-connected components, and of the mean entropy of its voxels (0..1), over the scans in which it was found.
        always: Names of the segments that were found in every scan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scans: int
    segments: dict[str, Range]
    always: tuple[str, ...]

    @classmethod
    def from_measures(cls, masks: Sequence[Mapping[str, MaskMeasures]]) -> MaskFingerprint:
        """Compute the ranges over the measures of each scan's mask."""
        rows: dict[str, list[MaskMeasures]] = {}
        for measures in masks:
            for name, row in measures.items():
                if row[0] > 0:
                    rows.setdefault(name, []).append(row)
        return cls(
            scans=len(masks),
            segments={name: Range.from_rows(found) for name, found in rows.items()},
            always=tuple(name for name, found in rows.items() if len(found) == len(masks)),
        )

    def out_of_distribution_warnings(self, measures: Mapping[str, MaskMeasures]) -> tuple[ScanWarning, ...]:
        """Return a warning for each measure of a mask that is outside the ranges."""
        return tuple(remark for name, row in measures.items() for remark in self._of_segment(name, row))

    def unusual_volumes(self, millilitres: Mapping[str, float]) -> list[str]:
        """Return the names of the segments whose volume in ml is outside the ranges."""
        return [name for name, volume in millilitres.items() if self._of_volume(name, volume)]

    def _of_volume(self, name: str, ml: float) -> str:
        """Return a sentence if the volume of a segment is outside the ranges; else an empty string."""
        seen = self.segments.get(name)
        if seen is None:
            return f"{name} was found, and in none of the {self.scans} training scans." if ml else ""
        low, high = seen.minimum[0], seen.maximum[0]
        had = f"in the training scans it had {format_range(low, high)} ml."
        if not ml:
            return f"No {name} was found; {had}" if name in self.always else ""
        return "" if low / VOLUME_FACTOR <= ml <= high * VOLUME_FACTOR else f"{name} has {ml:.3g} ml; {had}"

    def _of_segment(self, name: str, row: MaskMeasures) -> list[ScanWarning]:
        text = self._of_volume(name, row[0])
        out = [_flag("unlike_volume", text)] if text else []
        seen = self.segments.get(name)
        if seen is None or not row[0]:
            return out
        _, most, doubt = seen.maximum
        if row[1] > COMPONENTS_FACTOR * most + 1:
            text = f"{name} is in {row[1]:.0f} pieces; in the training scans it was in {most:.0f} at most."
            out.append(_flag("unlike_pieces", text))
        if row[2] > ENTROPY_FACTOR * doubt:
            text = f"The network is unsure of {name} (entropy {row[2]:.2f}; in the training scans {doubt:.2f} at most)."
            out.append(_flag("unlike_entropy", text))
        return out


def measure_mask(segmentation: Segmentation, entropy: NDArray[np.float64]) -> dict[str, MaskMeasures]:
    """Return volume in ml, number of components and mean entropy of each segment, by name.

    Args:
        segmentation: The segmentation.
        entropy: Mean entropy of each segment (K,); NaN for an empty segment, whose entropy becomes 0.
    """
    millilitres = segmentation.volumes_ml()
    out = {}
    for k, segment in enumerate(segmentation.segments):
        mask = segmentation.mask(k)
        pieces = ndimage.label(mask, np.ones((3, 3, 3)))[1] if mask.any() else 0
        doubt = float(entropy[k])
        out[segment.name] = (millilitres[segment.name], float(pieces), 0.0 if math.isnan(doubt) else doubt)
    return out


def _flag(code: str, text: str) -> ScanWarning:
    return ScanWarning(code, f"{text} Have a person look at it.")
