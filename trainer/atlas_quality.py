"""How far atlases can be trusted, from labelled scans that are labelled by one another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARPNESS = (1.0, 2.0, 4.0, 8.0)  # the values of k (:mod:`trainer.label_fusion`) that the labelled scans choose from
DEFAULT_SHARPNESS = 2.0  # k where there are too few of them to choose
OUTLIER_MARGIN = 0.2  # of Dice: an atlas that is this much worse than the median one is unlike the others


@dataclass(frozen=True)
class AtlasScore:
    """A labelled scan, labelled by the others.

    Attributes:
        name: Its name.
        alone: Dice of each atlas by itself, over SHARPNESS alike; None for itself, or where there is nothing to judge.
        together: Dice of all others together for each of SHARPNESS; None where there is nothing to judge.
        difference: Median over the scan of the smallest d.
        inconsistency: Distance in mm of points from where the way to another scan and back leads them.
    """

    name: str
    alone: tuple[float | None, ...]
    together: tuple[float, ...] | None
    difference: float
    inconsistency: float

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> AtlasScore:
        """What JSON holds of one; its tuples are lists there."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        return cls(**values)


@dataclass(frozen=True)
class AtlasAssessment:
    """What the labelled scans say of the atlases.

    Attributes:
        dice: Mean Dice over the labelled scans that hold a segment, each labelled by the others; None where nothing
            could be judged.
        alone: Mean Dice of each atlas by itself on the others; atlases that could not be judged are not in it.
        sharpness: The best k.
        difference: Median over the scans of :attr:`AtlasScore.difference`; None without any.
        inconsistency: Median over the scans of :attr:`AtlasScore.inconsistency`, in mm; None without any.
    """

    dice: float | None
    alone: dict[str, float]
    sharpness: float
    difference: float | None
    inconsistency: float | None

    @classmethod
    def from_scores(cls, names: Sequence[str], found: Sequence[AtlasScore]) -> AtlasAssessment:
        """What the scans come to, for atlases called ``names``."""
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
        """The atlases that label the others much worse than the median one does; at least two are always kept."""
        if len(self.alone) < 3:
            return []
        middle = statistics.median(self.alone.values())
        found = sorted((dice, name) for name, dice in self.alone.items() if dice < middle - OUTLIER_MARGIN)
        return [name for _, name in found[: len(self.alone) - 2]]
