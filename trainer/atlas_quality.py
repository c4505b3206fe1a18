"""Quality of atlases, estimated by leave-one-out cross-validation on the labelled scans."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARPNESS = (1.0, 2.0, 4.0, 8.0)  # values of k (:mod:`trainer.label_fusion`) from which cross-validation selects
DEFAULT_SHARPNESS = 2.0  # k if there are too few labelled scans for cross-validation
OUTLIER_MARGIN = 0.2  # an atlas is an outlier if its Dice is lower than the median atlas's by more than this


@dataclass(frozen=True)
class AtlasScore:
    """Scores of the atlases on one labelled scan, which the other labelled scans label.

    Attributes:
        name: Name of the scan.
        alone: Dice of each atlas alone, which does not depend on the sharpness. None for the scan itself, or if no
            segment can be compared.
        together: Dice of all other scans together for each value of SHARPNESS; None if no segment can be compared.
        difference: Median over the scan of the smallest d.
        inconsistency: Median distance in mm between points and their images under registration to another scan and
            back.
    """

    name: str
    alone: tuple[float | None, ...]
    together: tuple[float, ...] | None
    difference: float
    inconsistency: float

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> AtlasScore:
        """Create a score from JSON, in which tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        return cls(**values)


@dataclass(frozen=True)
class AtlasAssessment:
    """Summary of the scores over all labelled scans.

    Attributes:
        dice: Mean Dice over the labelled scans that hold a segment, each labelled by the others; None if no scan could
            be compared.
        alone: Mean Dice of each atlas alone on the other scans, by name; atlases without a score are left out.
        sharpness: The best k.
        difference: Median over the scans of :attr:`AtlasScore.difference`; None without scores.
        inconsistency: Median over the scans of :attr:`AtlasScore.inconsistency`, in mm; None without scores.
    """

    dice: float | None
    alone: dict[str, float]
    sharpness: float
    difference: float | None
    inconsistency: float | None

    @classmethod
    def from_scores(cls, names: Sequence[str], found: Sequence[AtlasScore]) -> AtlasAssessment:
        """Summarise the scores ``found`` of the scans, for atlases called ``names``."""
        tables = [one.together for one in found if one.together is not None]
        alone = {}
        for number, name in enumerate(names):
            values = [value for one in found if (value := one.alone[number]) is not None]
            if values:
                alone[name] = statistics.fmean(values)
        means = np.mean(tables, axis=0) if tables else None
        best = None if means is None else int(np.argmax(means))
        return cls(
            dice=None if means is None or best is None else float(means[best]),
            alone=alone,
            sharpness=DEFAULT_SHARPNESS if best is None else SHARPNESS[best],
            difference=statistics.median(one.difference for one in found) if found else None,
            inconsistency=statistics.median(one.inconsistency for one in found) if found else None,
        )

    def outliers(self) -> list[str]:
        """Return the names of atlases whose mean Dice is far below the median; at least two atlases are kept."""
        if len(self.alone) < 3:
            return []
        middle = statistics.median(self.alone.values())
        found = sorted((dice, name) for name, dice in self.alone.items() if dice < middle - OUTLIER_MARGIN)
        return [name for _, name in found[: len(self.alone) - 2]]
