"""Supervised training on the labelled scans alone: what every semi-supervised method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, StepPlan, share_of_part
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Section


class Supervised(Method):
    """(cross-entropy + Dice) / 2 on batches of labelled patches."""

    name = "supervised"

    class Config(Section):
        """There is nothing to switch."""

    def build(self) -> Networks:
        """The student alone."""
        return {"student": self.build_student()}

    def step_plan(self, step: int) -> StepPlan:
        """Every step trains the student on a batch of labelled patches, half of it when a guide labels the others."""
        composition = self.composition(None) if self.guided else BatchComposition(self.recipe.batch, 0)
        return StepPlan("train", {"student": self.student_rate(step)}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """The supervised loss."""
        n = batch.labelled
        logits = networks["student"](batch.images)
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        total = scale * supervised_loss(logits[:n], batch.labels[:n], self.targets, batch.label_weights)
        return {"total": total, "supervised": torch.detach(total)}
