"""Cross pseudo supervision: two networks of one kind, each of which learns from the other's decisions.

Chen et al., "Semi-supervised semantic segmentation with cross pseudo supervision", CVPR 2021; for volumes as in
SSL4MIS.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, StepPlan, share_of_part
from trainer.patches import Batch
from trainer.recipe import Section, Share


class CPS(Method):
    """L = L_sup(A) + L_sup(B) + w(t) (CE(A, decisions of B) + CE(B, decisions of A))."""

    name = "cps"
    guided_networks = ("student", "second")

    class Config(Section):
        """Settings of the paper's family.

        Attributes:
            weight: Largest weight w_max of the pseudo-labels.
            ramp: Share of the updates over which w(t) rises.
            labelled: Number of labelled patches per batch; by default half of the batch.
            pseudo_on: Patches on which a network learns from the other one's decisions: the ``unlabelled`` ones, or
                ``all``, as in the paper.
            export: Network that is kept.
        """

        weight: Annotated[float, Field(ge=0)] = 0.1
        ramp: Share = 1.0
        labelled: Annotated[int, Field(ge=1)] | None = None
        pseudo_on: Literal["unlabelled", "all"] = "unlabelled"
        export: Literal["student", "second"] = "student"

    def build(self) -> Networks:
        """Build two students that differ by their random initial weights."""
        return {"student": self.build_student(), "second": self.build_student()}

    def step_plan(self, step: int) -> StepPlan:
        """Train both networks in every step."""
        rate = self.student_rate(step)
        composition = self.composition(self.config.labelled)
        return StepPlan("train", {"student": rate, "second": rate}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised terms and the cross-supervision terms of both networks."""
        both = [networks["student"](batch.images), networks["second"](batch.images)]
        labels = batch.labels[: batch.labelled]
        scale = share_of_part(batch.labelled, step_plan.composition.labelled, batch, step_plan)
        parts = [supervised_loss(y[: batch.labelled], labels, self.targets, batch.label_weights) for y in both]
        supervised = scale * torch.stack(parts).sum()
        crossed = torch.zeros_like(supervised)
        everywhere = self.config.pseudo_on == "all"
        first = 0 if everywhere else batch.labelled
        if first < len(batch):
            a, b = (y[first:] for y in both)
            crossed = self.crossed(a, b)
            if not everywhere:
                crossed = crossed * share_of_part(
                    len(batch) - first, step_plan.composition.unlabelled, batch, step_plan
                )
        total = supervised + self.weight(step_plan.student_update) * crossed
        return {"total": total, "supervised": supervised.detach(), "crossed": crossed.detach()}

    def crossed(self, a: Tensor, b: Tensor) -> Tensor:
        """Return CE(a, decisions of b) + CE(b, decisions of a); no gradient passes through a decision."""
        return self._taught(a, by=b) + self._taught(b, by=a)

    def committee(self, networks: Networks) -> Networks:
        """Return both networks."""
        return {name: networks[name] for name in self.guided_networks}

    def exported(self, networks: Networks) -> nn.Module:
        """Return the network that the setting ``export`` names."""
        return networks[self.config.export]

    def _taught(self, logits: Tensor, *, by: Tensor) -> Tensor:
        with torch.no_grad():
            decided = self.targets.encode(self.targets.decide(self.targets.probabilities(by)))
        return self.targets.cross_entropy(logits, decided).mean()
