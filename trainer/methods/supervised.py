"""Supervised training on the labelled scans alone: what every semi-supervised method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, Turn
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
        """Every step trains the student on a batch of labelled patches."""
        return Turn("train", {"student": self.student_rate(step)}, Mixture(self.recipe.batch, 0), step)

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """The supervised loss."""
        total = supervised_loss(networks["student"](batch.images), batch.labels, self.targets)
        return {"total": total, "supervised": torch.detach(total)}
