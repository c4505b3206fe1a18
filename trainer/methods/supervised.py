"""Supervised training on the labelled scans alone, the baseline of the semi-supervised methods."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, StepPlan, share_of_part
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Section


class Supervised(Method):
    """L = (cross-entropy + Dice) / 2 on batches of labelled patches."""

    name = "supervised"

    class Config(Section):
        """The method has no settings."""

    def build(self) -> Networks:
        """Build the student alone."""
        return {"student": self.build_student()}

    def step_plan(self, step: int) -> StepPlan:
        """Train the student on labelled patches in every step.

        If an earlier stage guides this one, half of the batch is unlabelled patches.
        """
        composition = self.composition(None) if self.guided else BatchComposition(self.recipe.batch, 0)
        return StepPlan("train", {"student": self.student_rate(step)}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised loss."""
        n = batch.labelled
        logits = networks["student"](batch.images)
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        total = scale * supervised_loss(logits[:n], batch.labels[:n], self.targets, batch.label_weights)
        return {"total": total, "supervised": torch.detach(total)}
