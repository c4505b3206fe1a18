"""CFR: a foundation model, fine-tuned on mosaics of the labelled scans' slices, labels the others for a 3D network.

Li et al., "Concatenate, Fine-tuning, Re-training: A SAM-enabled framework for semi-supervised 3D medical image
segmentation", 2024. Another method, the host, does the re-training; equation numbers are the paper's.
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
    """L_ft = (Dice + CE) / 2 of the foundation model on mosaics (Eq. 5); then L_host + lambda L_pl (Eq. 6, 7)."""

    name = "cfr"
    next_method_key = "host"
    guides = True

    class Config(FineTunedSam.Config):
        """The paper's ablations. The host's own settings stand under its name, as for the host alone.

        Attributes:
            host: Method with which the 3D network is re-trained.
            sam_updates: Number of updates of the foundation model, before the first update of the 3D network.
            pseudo_labels: ``cached`` labels whole scans once, with overlapping windows; ``on_the_fly`` labels every
                patch again, as released, which runs the foundation model in every step.
            pseudo_weight: Weight lambda of L_pl: 1 from the start, as released.
            pseudo_schedule: Course of this weight: ``constant``, ``ramp`` as for consistency terms (Eq. 6 has one
                weight for both terms; to follow it, take the host's weight), or ``falling`` as 1 - t/T.
        """

        host: MethodName = "mean_teacher"
        sam_updates: Positive = 6000
        pseudo_labels: Literal["cached", "on_the_fly"] = "cached"
        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        pseudo_schedule: WeightSchedule = "constant"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`PretrainThenTrain` and :class:`FineTunedSam`.

        Raises:
            RecipeError: There are no unlabelled scans.
        """
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError("cfr labels unlabelled scans, and the split has none; train with `supervised`.")

    def build(self) -> Networks:
        """Build the foundation model."""
        return {SAM: self.build_sam()}

    # --- fine-tuning ----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Number of updates of the foundation model."""
        return int(self.config.sam_updates)

    def step_plan(self, step: int) -> StepPlan:
        """Fine-tune the foundation model on labelled patches in every step."""
        rate = self.config.sam_optimiser.rate * rate_factor(self.config.sam_schedule, step, self.steps)
        return StepPlan("fine-tune", {SAM: rate}, BatchComposition(self.config.volumes, 0), 0)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return Eq. 5."""
        total = self.canvas_loss(networks[SAM], batch)
        return {"total": total, "sam": total.detach()}

    # --- labels for the stages that follow ------------------------------------------------------------------------

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Return True after the foundation model's last update, if it labels whole scans."""
        return step == self.steps and self.config.pseudo_labels == "cached"

    def labeller(self, networks: Networks, step: int) -> nn.Module:
        """Return the foundation model as a network for volumes."""
        return self.as_volume_network(networks[SAM])

    @torch.no_grad()
    def guiding_labels(self, networks: Networks, batch: Batch) -> Tensor:
        """Return the foundation model's labels of the unlabelled patches (Algorithm 1, line 16)."""
        if self.config.pseudo_labels == "cached" or len(batch) == batch.labelled:
            return super().guiding_labels(networks, batch)
        found = self.targets.probabilities(self.as_volume_network(networks[SAM])(batch.images[batch.labelled :]))
        return self.targets.decide(found)

    def guidance_weight(self, update: int) -> float:
        """Return lambda of L_pl (Eq. 6, 7) at the student's ``update``; every update has it (Algorithm 1, line 18)."""
        course = weight_schedule_factor(self.config.pseudo_schedule, update, self.recipe.updates)
        return float(self.config.pseudo_weight * course)

    def committee(self, networks: Networks) -> Networks:
        """Return the foundation model; the method that follows adds its networks."""
        return {SAM: self.as_volume_network(networks[SAM])}
