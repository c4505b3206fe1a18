"""CFR: a foundation model learns the labelled scans as large images of their slices, then labels the others for a small
3D network.

Li et al., "Concatenate, Fine-tuning, Re-training: A SAM-enabled framework for semi-supervised 3D medical image
segmentation", 2024. The re-training is a method of its own, its host; equation numbers are the paper's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.errors import RecipeError
from trainer.methods.cfr_ft import FineTunedSam
from trainer.methods.method import Networks, SegmentationTask, StepPlan
from trainer.methods.pretrain_then_train import PretrainThenTrain
from trainer.methods.registry import MethodName
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Positive, Recipe
from trainer.schedules import WeightSchedule, rate_factor, weight_schedule_factor

SAM = "sam"  # the foundation model's name among the networks


class CFR(FineTunedSam, PretrainThenTrain):
    """L_ft = (Dice + CE) / 2 of the foundation model on canvases (Eq. 5); then L_host + lambda L_pl (Eq. 6, 7)."""

    name = "cfr"
    next_method_key = "host"
    guides = True

    class Config(FineTunedSam.Config):
        """The paper's ablations. The host's own switches stand under its name, as for the host alone.

        Attributes:
            host: the method that the 3D network is re-trained with.
            sam_updates: the foundation model's optimisation steps, before the first of the 3D network.
            pseudo_labels: ``cached`` labels whole scans once, with overlapping windows; ``on_the_fly`` labels every
                patch anew, as released, at the cost of the foundation model in every step.
            pseudo_weight: lambda of L_pl: 1 from the start, as released.
            pseudo_schedule: that weight stays ``constant``, follows the ``ramp`` of consistency terms (Eq. 6 has one
                weight for both: say the host's), or goes ``falling`` as 1 - t/T.
        """

        host: MethodName = "mean_teacher"
        sam_updates: Positive = 6000
        pseudo_labels: Literal["cached", "on_the_fly"] = "cached"
        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        pseudo_schedule: WeightSchedule = "constant"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`PretrainThenTrain` and :class:`FineTunedSam`; there has to be something to label."""
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError("cfr labels unlabelled scans, and the split has none; train with `supervised`.")

    def build(self) -> Networks:
        """The foundation model."""
        return {SAM: self.build_sam()}

    # --- fine-tuning ----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """The foundation model's updates."""
        return int(self.config.sam_updates)

    def step_plan(self, step: int) -> StepPlan:
        """Fine-tuning on labelled patches."""
        rate = self.config.sam_optimiser.rate * rate_factor(self.config.sam_schedule, step, self.steps)
        return StepPlan("fine-tune", {SAM: rate}, BatchComposition(self.config.volumes, 0), 0)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Eq. 5."""
        total = self.canvas_loss(networks[SAM], batch)
        return {"total": total, "sam": total.detach()}

    # --- labels for the stages that follow ------------------------------------------------------------------------

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """When the foundation model has learned, if it labels whole scans."""
        return step == self.steps and self.config.pseudo_labels == "cached"

    def labeller(self, networks: Networks, step: int) -> nn.Module:
        """The foundation model."""
        return self.as_volume_network(networks[SAM])

    @torch.no_grad()
    def guiding_labels(self, networks: Networks, batch: Batch) -> Tensor:
        """The foundation model's labels of the unlabelled patches (Algorithm 1, line 16)."""
        if self.config.pseudo_labels == "cached" or len(batch) == batch.labelled:
            return super().guiding_labels(networks, batch)
        found = self.targets.probabilities(self.as_volume_network(networks[SAM])(batch.images[batch.labelled :]))
        return self.targets.decide(found)

    def guidance_weight(self, update: int) -> float:
        """lambda of L_pl (Eq. 6, 7) at the student's ``update``; it is added at every update (Algorithm 1, line 18)."""
        course = weight_schedule_factor(self.config.pseudo_schedule, update, self.recipe.updates)
        return float(self.config.pseudo_weight * course)

    def committee(self, networks: Networks) -> Networks:
        """The foundation model, beside those of the method that follows."""
        return {SAM: self.as_volume_network(networks[SAM])}
