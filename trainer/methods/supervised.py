"""Supervised training on the labelled scans alone: what every semi-supervised method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, Turn, share_of_part
from trainer.patches import Batch, Mixture
from trainer.recipe import Section


class Supervised(Method):
    """(cross-entropy + Dice) / 2 on batches of labelled patches."""

    name = "supervised"

    class Switches(Section):
        """There is nothing to switch."""

    def build(self) -> Networks:
        """The student alone."""
        return {"student": self.build_student()}

    def turn(self, step: int) -> Turn:
        """Every step trains the student on a batch of labelled patches, half of it when a guide labels the others."""
        mixture = self.mixture(None) if self.guided else Mixture(self.recipe.batch, 0)
        return Turn("train", {"student": self.student_rate(step)}, mixture, step)

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """The supervised loss."""
        n = batch.labelled
        logits = networks["student"](batch.images)
        scale = share_of_part(n, turn.mixture.labelled, batch, turn)
        total = scale * supervised_loss(logits[:n], batch.labels[:n], self.targets, batch.label_weights)
        return {"total": total, "supervised": torch.detach(total)}
