"""Self-training: a network labels the unlabelled scans and a new one learns from all labels, in one or more rounds.

Scudder 1965; for volumes as described in CFR (Li et al.), section on re-training: (1) train on the labelled scans,
(2) predict the unlabelled ones, (3) train on both; (2) and (3) repeat.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, StepPlan, share_of_part
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Positive, Section, Share
from trainer.schedules import rate_factor


class SelfTraining(Method):
    """L = L_sup(labelled) + weight L_sup(unlabelled, pseudo-labels of the previous round)."""

    name = "self_training"

    class Config(Section):
        """Settings; the paper leaves the number of rounds open.

        Attributes:
            rounds: Number of times that the unlabelled scans are labelled.
            first: Share of the updates before the first pseudo-labels; the rounds share the rest evenly.
            restart: If True, each round trains a new student, else it continues with the last one.
            weight: Weight of the pseudo-labelled term.
            labelled: Number of labelled patches per batch once there are pseudo-labels; by default half of the batch.
        """

        rounds: Positive = 1
        first: Annotated[Share, Field(gt=0, lt=1)] = 0.4
        restart: bool = True
        weight: Annotated[float, Field(ge=0)] = 1.0
        labelled: Annotated[int, Field(ge=1)] | None = None

    def build(self) -> Networks:
        """Build the student alone."""
        return {"student": self.build_student()}

    def step_plan(self, step: int) -> StepPlan:
        """Train on the labelled scans first, then in rounds; the learning rate's schedule restarts in each."""
        current, begun, ended = self.round_at(step)
        rate = self.recipe.optimiser.rate * rate_factor(self.recipe.schedule, step - begun, ended - begun)
        pseudo = current or self.guided
        composition = self.composition(self.config.labelled) if pseudo else BatchComposition(self.recipe.batch, 0)
        return StepPlan(f"round-{current}" if current else "labelled", {"student": rate}, composition, step)

    def round_at(self, step: int) -> tuple[int, int, int]:
        """Return the round of ``step``, its first step and the step after its last; round 0 has labels alone."""
        total, rounds = self.recipe.updates, self.config.rounds if self.task.unlabelled else 0
        if not rounds:
            return 0, 0, total
        first = max(1, round(self.config.first * total))
        starts = [0, *(first + (total - first) * r // rounds for r in range(rounds)), total]
        current = max(r for r in range(rounds + 1) if starts[r] <= step)
        return current, starts[current], starts[current + 1]

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Return True before the first step of every round."""
        current, begun, _ = self.round_at(step)
        return current > 0 and step == begun

    def restarts(self, step: int) -> tuple[str, ...]:
        """Restart the student in every round if ``restart`` is set."""
        return ("student",) if self.config.restart and self.refreshes_pseudo_labels(step) else ()

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the two terms; before the first round there is only the supervised one."""
        logits = networks["student"](batch.images)
        n = batch.labelled
        terms: dict[str, Tensor] = {}
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        terms["supervised"] = scale * supervised_loss(logits[:n], batch.labels[:n], self.targets, batch.label_weights)
        total = terms["supervised"]
        if step_plan.composition.unlabelled and self.round_at(step_plan.student_update)[0]:
            scale = share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
            terms["pseudo"] = scale * supervised_loss(logits[n:], batch.labels[n:], self.targets)
            total = total + self.config.weight * terms["pseudo"]
        return {"total": total, **{name: value.detach() for name, value in terms.items()}}
