"""Atlases: the labelled scans are registered onto the unlabelled ones, and any method learns from the fused labels.

No network makes these labels, and their errors differ from a network's: they keep the shape of the organ. They are of
no use where registration does not find the organ. Cross-validation shows this: each labelled scan is labelled by the
others. :mod:`trainer.atlas_labels` and :mod:`trainer.registration` make the labels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from trainer.atlas_quality import AtlasAssessment
from trainer.errors import RecipeError
from trainer.label_channels import LabelChannels
from trainer.methods.label_then_train import LabelThenTrain
from trainer.methods.method import SegmentationTask, StepPlan
from trainer.methods.registry import MethodName
from trainer.patches import Batch
from trainer.recipe import Positive, Recipe, Section, Share
from trainer.scan_labelling import LabellingWorkload, ScanLabeller, TrainingScans
from trainer.schedules import WeightSchedule, weight_schedule_factor
from trainer.soft_labels import BYTE_MAX

if TYPE_CHECKING:
    from trainer.atlas_labels import AtlasSet

MIN_MEDIAN_WEIGHT = 0.5  # median weight of a scan's voxels below which the scan is reported as unlike every atlas


class AtlasMethod(LabelThenTrain):
    """L = L_host + weight(t) (cross-entropy + Dice) / 2 against the soft labels of the atlases."""

    name = "atlas"

    class Config(Section):
        """Weight and selection of the atlases. The host's own settings stand under its name, as for the host alone.

        Attributes:
            host: Method that the student is trained with.
            weight: Largest weight of the atlases' term.
            schedule: Course of the weight: ``constant``, ``ramp`` as for consistency terms, or ``falling`` as 1 - t/T,
                so that the student may become better than the atlases.
            min_dice: Mean Dice of the labelled scans, labelled by one another, below which the atlases are not used. A
                host that learns from unlabelled patches then continues without them; with ``supervised``, half of each
                batch is unlabelled and has no loss.
            max_atlases: Largest number of labelled scans that serve as atlases, the first ones of the split.
        """

        host: MethodName = "mean_teacher"
        weight: Annotated[float, Field(ge=0)] = 1.0
        schedule: WeightSchedule = "constant"
        min_dice: Share = 0.5
        max_atlases: Positive = 16

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`LabelThenTrain`.

        Raises:
            RecipeError: SimpleITK is not installed.
        """
        super().__init__(recipe, task)
        if importlib.util.find_spec("SimpleITK") is None:
            raise RecipeError("atlas registers scans with SimpleITK, which is not installed; pip install simpleitk.")

    def scan_labeller(self, step: int, scans: TrainingScans) -> ScanLabeller:
        """Return the labeller that uses the atlases; it gives labels of weight 0 if the atlases are not good enough."""
        return self.atlases(scans, scans.labelled) or (lambda names: self._without_weight(names, scans))

    def atlases(self, scans: TrainingScans, labelled: Sequence[str], *, tell: bool = True) -> ScanLabeller | None:
        """Return a labeller that uses some of the labelled scans as atlases.

        Args:
            scans: The training scans.
            labelled: Names of the scans that serve as atlases.
            tell: If True, the assessment of the atlases is reported to the person who trains.

        Returns:
            The labeller; None if the cross-validation of the atlases is worse than ``min_dice``.
        """
        from trainer.atlas_labels import AtlasSet  # needs SimpleITK

        own = [scans.cases[name] for name in labelled[: self.config.max_atlases]]
        others = [scans.cases[name] for name in (*scans.labelled, *scans.unlabelled)]
        kept = AtlasSet.from_cases(own, others, LabelChannels.from_targets(self.targets), scans.cache, scans.processes)
        judged = self._judged(kept, scans)
        strange = judged.outliers()
        if strange:  # assess again, without the outliers' influence on the votes of the others
            kept = kept.without(strange)
            judged = self._judged(kept, scans)
        if tell:
            scans.tell(assessment_sentence(judged, len(own), strange, self.config.min_dice))
        if len(own) > 1 and (judged.dice is None or judged.dice < self.config.min_dice):
            return None

        def labels_of(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            unlike = []
            done = kept.label_scans([scans.cases[name] for name in names], judged.sharpness, judged.difference)
            for number, (name, labels) in enumerate(done, start=1):
                if np.median(labels[-1]) < MIN_MEDIAN_WEIGHT * BYTE_MAX:
                    unlike.append(name)
                yield name, labels
                scans.progress("registering atlases", number, len(names))
            if tell and unlike:
                first = ", ".join(unlike[:3]) + (" and others" if len(unlike) > 3 else "")
                scans.tell(f"Atlases: {len(unlike)} scan(s) resemble no atlas, and their labels count less: {first}.")

        return labels_of

    def _judged(self, atlases: AtlasSet, scans: TrainingScans) -> AtlasAssessment:
        found = []
        for number, one in enumerate(atlases.cross_validate(), start=1):
            found.append(one)
            scans.progress("assessing atlases", number, len(atlases.cases))
        return AtlasAssessment.from_scores(atlases.names, found)

    def guidance(self, logits: Tensor, labels: Tensor, batch: Batch, step_plan: StepPlan) -> Tensor:
        """See :meth:`Method.guidance`; in addition, patches that differ from every atlas count less as a whole."""
        term = super().guidance(logits, labels, batch, step_plan)
        if labels.ndim < logits.ndim or not len(labels):
            return term
        return term * (labels[:, -1].float().mean() / BYTE_MAX)

    def labelling_workload(self) -> LabellingWorkload:
        """Count the registrations: every labelled scan onto every other scan, and one way back from each."""
        atlases = min(self.task.labelled, self.config.max_atlases)
        judged = atlases * (atlases - 1) + atlases if atlases > 1 else 0
        return LabellingWorkload(registrations=judged + atlases * self.task.unlabelled)

    def _without_weight(self, names: Sequence[str], scans: TrainingScans) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for name in names:
            yield name, np.zeros((self.targets.channels + 1, *scans.cases[name].shape), np.uint8)

    def guidance_weight(self, update: int) -> float:
        """Return the weight of the atlases' term at the student's ``update``."""
        return float(self.config.weight * weight_schedule_factor(self.config.schedule, update, self.recipe.updates))


def assessment_sentence(judged: AtlasAssessment, atlases: int, strange: Sequence[str], min_dice: float) -> str:
    """Describe the assessment of the atlases for the person who trains.

    Args:
        judged: The assessment.
        atlases: Number of labelled scans before outliers were left out.
        strange: Names of the outliers that were left out.
        min_dice: See :class:`AtlasMethod.Config`.
    """
    if atlases < 2:
        return "Atlases: a single labelled scan cannot be assessed by others, so its labels are used unassessed."
    if judged.dice is None:
        return "Atlases: no labelled scan holds a segment, so the atlases are not used."
    said = (
        f"Atlases: labelled by one another, the labelled scans reach a mean Dice of {judged.dice:.3f}, and mapping a "
        f"point to another scan and back moves it by {judged.inconsistency:.1f} mm."
    )
    if strange:
        said += f" {', '.join(strange)} labels the others much worse than the rest and is left out as an atlas."
    if judged.dice < min_dice:
        return f"{said} That is below {min_dice:g} (methods.atlas.min_dice), so the atlases are not used."
    return said
