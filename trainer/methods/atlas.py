"""Atlases: the labelled scans are registered onto the unlabelled ones, and any method learns from the labels so made.

No network is needed for these labels, and their errors are of another kind than a network's: they keep the shape of the
organ. Where registration does not find the organ they are of no use, and the labelled scans tell: each is labelled by
the others. See :mod:`trainer.atlas_labels` and :mod:`trainer.registration` for how the labels are made.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from trainer.errors import RecipeError
from trainer.methods.method import Labelling, LabellingWork, LabelsOfScan, Networks, Task, TrainingScans, Turn
from trainer.methods.pretrain import PretrainThenTrain
from trainer.methods.registry import MethodName
from trainer.patches import Batch
from trainer.recipe import Positive, Recipe, Section, Share
from trainer.schedules import ramp_up
from trainer.targets import ExclusiveClasses

OUTLIER = 0.2  # of Dice: an atlas that is this much worse than the median one is left out


class AtlasMethod(PretrainThenTrain):
    """L = L_host + weight(t) (cross-entropy + Dice) / 2 against the soft labels that the atlases give."""

    name = "atlas"
    switch = "host"
    guides = True

    class Switches(Section):
        """How far the atlases are trusted. The host's own switches stand under its name, as for the host alone.

        Attributes:
            host: Method that the student is trained with.
            weight: Largest weight of the atlases' term.
            schedule: That weight stays ``constant``, follows the ``ramp`` of consistency terms, or goes ``falling`` as
                1 - t/T, so that the student may outgrow the atlases.
            least: Mean Dice of the labelled scans, labelled by one another, below which the atlases are not used.
            most: Number of labelled scans that serve as atlases; the first ones of the split.
        """

        host: MethodName = "mean_teacher"
        weight: Annotated[float, Field(ge=0)] = 1.0
        schedule: Literal["constant", "ramp", "falling"] = "constant"
        least: Share = 0.5
        most: Positive = 16

    def __init__(self, recipe: Recipe, task: Task) -> None:
        """See :class:`PretrainThenTrain`; there has to be something to label."""
        super().__init__(recipe, task)
        if importlib.util.find_spec("SimpleITK") is None:
            raise RecipeError("atlas registers scans with SimpleITK, which is not installed; pip install simpleitk.")
        if not task.unlabelled:
            raise RecipeError("atlas labels unlabelled scans, and the split has none; train with `supervised`.")

    def build(self) -> Networks:
        """None."""
        return {}

    @property
    def steps(self) -> int:
        """None: the scans are labelled before the first step of the host."""
        return 0

    def turn(self, step: int) -> Turn:
        """There is no step of this stage."""
        raise IndexError(step)

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """There is no step of this stage."""
        raise IndexError(batch.step)

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Once."""
        return step == 0

    def scan_labeller(self, step: int, scans: TrainingScans) -> LabelsOfScan:
        """The atlases that the labelled scans do not speak against; labels without weight if they all are bad."""
        labels_of = self.atlases(scans, scans.labelled)
        return labels_of or (lambda names: self._without_weight(names, scans))

    def atlases(self, scans: TrainingScans, labelled: Sequence[str], *, tell: bool = True) -> LabelsOfScan | None:
        """Labels by some of the labelled scans; None where they speak against it.

        Args:
            scans: The training scans.
            labelled: Names of the scans that serve as atlases.
            tell: Say what the labelled scans say of the atlases.
        """
        from trainer.atlas_labels import Atlases, Channels, judgement

        channels = Channels(self.targets.segments, not isinstance(self.targets, ExclusiveClasses))
        own = [scans.cases[name] for name in labelled[: self.switches.most]]
        others = [scans.cases[name] for name in scans.unlabelled]
        atlases = Atlases.of(own, others, channels, scans.processes)
        found = []
        for number, one in enumerate(atlases.judged() if len(own) > 1 else (), start=1):
            found.append(one)
            scans.progress("judging atlases", number, len(own))
        judged = judgement([case.case_id for case in own], found)
        strange = unlike_the_others(judged.alone)
        if tell:
            scans.tell(sentence_of(judged.mean, judged.inconsistency, strange, self.switches.least))
        if judged.mean < self.switches.least:
            return None
        kept = atlases.without(strange)

        def labels_of(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            done = kept.labelled([scans.cases[name] for name in names], judged.sharpness, scans.cache)
            for number, one in enumerate(done, start=1):
                yield one
                scans.progress("registering atlases", number, len(names))

        return labels_of

    def labelling(self, amount: Labelling) -> LabellingWork:
        """Every labelled scan onto every other scan, and one way back from each."""
        atlases = min(amount.labelled, self.switches.most)
        judged = atlases * (atlases - 1) + atlases if atlases > 1 else 0
        return LabellingWork(registrations=judged + atlases * amount.unlabelled)

    def _without_weight(self, names: Sequence[str], scans: TrainingScans) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for name in names:
            yield name, np.zeros((self.targets.channels + 1, *scans.cases[name].shape), np.uint8)

    def guidance_weight(self, update: int) -> float:
        """The weight of the atlases' term at the student's ``update``."""
        total = self.recipe.updates
        factors = {"constant": 1.0, "ramp": ramp_up(update, total), "falling": 1.0 - update / total}
        return float(self.switches.weight * factors[self.switches.schedule])

    def voters(self, networks: Networks) -> Networks:
        """No network of this stage."""
        return {}


def unlike_the_others(alone: dict[str, float]) -> list[str]:
    """The atlases that label the others much worse than the median one does; at least two are always kept."""
    if len(alone) < 3:
        return []
    middle = statistics.median(alone.values())
    strange = sorted((dice, name) for name, dice in alone.items() if dice < middle - OUTLIER)
    return [name for _, name in strange[: len(alone) - 2]]


def sentence_of(dice: float, inconsistency: float, strange: Sequence[str], least: float) -> str:
    """What the labelled scans say of the atlases, for the person who trains."""
    if math.isnan(dice):
        return "Atlases: a single labelled scan cannot be judged by others, so its labels are taken as they come."
    said = (
        f"Atlases: labelled by one another, the labelled scans reach a mean Dice of {dice:.3f}, and a point is "
        f"{inconsistency:.1f} mm from where the way to another scan and back leads it."
    )
    if dice < least:
        return f"{said} That is below {least:g} (methods.atlas.least), so the atlases are not used."
    if strange:
        said += f" {', '.join(strange)} labels the others much worse than the rest, and is left out as an atlas."
    return said
