"""ICT: the student's prediction of a mixture of two patches has to match the mixture of the teacher's predictions.

Verma et al., "Interpolation consistency training for semi-supervised learning", IJCAI 2019; for volumes as in SSL4MIS.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from trainer.losses import supervised_loss, weighted_mean
from trainer.methods.mean_teacher import MeanTeacher
from trainer.methods.method import Networks, StepPlan, share_of_part
from trainer.patches import Batch
from trainer.recipe import Section, Share


class ICT(MeanTeacher):
    """L = L_sup(labelled) + w(t) mean (p_student(mix(u, v)) - mix(p_teacher(u), p_teacher(v)))^2.

    mix(a, b) = lambda a + (1 - lambda) b, lambda from Beta(alpha, alpha).
    """

    name = "ict"

    class Config(Section):
        """The paper's settings.

        Attributes:
            weight: Largest consistency weight w_max.
            ramp: Share of the updates over which w(t) rises.
            decay: Limit of the moving average's decay.
            alpha: Parameter of the Beta distribution; small values mix little.
            factor: Scope of a lambda: the whole ``batch``, as in the paper, or one ``patch``, as in SSL4MIS.
            pairs: Pairs that are mixed: each unlabelled patch with the ``next`` one, so that a batch gives as many
                mixtures as it has unlabelled patches (the paper shuffles a copy of the batch), or the first ``half``
                with the second, as in SSL4MIS.
            labelled: Number of labelled patches per batch; by default half of the batch.
            average_buffers: If True, the buffers of batch norms are averaged too; the papers average parameters only.
            export: Network that is kept: the ``student`` or its moving average (``teacher``).
        """

        weight: Annotated[float, Field(ge=0)] = 0.1
        ramp: Share = 1.0
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
        alpha: Annotated[float, Field(gt=0)] = 0.2
        factor: Literal["batch", "patch"] = "batch"
        pairs: Literal["next", "half"] = "next"
        labelled: Annotated[int, Field(ge=1)] | None = None
        average_buffers: bool = False
        export: Literal["student", "teacher"] = "student"

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; each part needs two unlabelled patches to mix."""
        super().check_parts(processes)
        if self.task.unlabelled:
            self.require_in_each_part(self.composition(self.config.labelled), processes, labelled=0, unlabelled=2)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised term and the consistency of mixtures.

        The labelled patches and the mixtures are two calls of the student, as in the paper's code.
        """
        n = batch.labelled
        known, unknown = batch.images[:n], batch.images[n:]
        supervised = torch.zeros((), device=batch.images.device)
        if n:
            logits = networks["student"](known)
            scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
            supervised = scale * supervised_loss(logits, batch.labels[:n], self.targets, batch.label_weights)
        if not step_plan.composition.unlabelled:
            return {"total": supervised, "supervised": supervised.detach()}
        consistency = share_of_part(len(unknown), step_plan.composition.unlabelled, batch, step_plan) * self.mixed(
            networks, unknown
        )
        total = supervised + self.weight(step_plan.student_update) * consistency
        return {"total": total, "supervised": supervised.detach(), "consistency": consistency.detach()}

    def mixed(self, networks: Networks, images: Tensor) -> Tensor:
        """Return the consistency of mixtures of patches (N, C, X, Y, Z), N at least 2."""
        with torch.no_grad():
            answers = self.targets.probabilities(networks["teacher"](images))
        first, second = self.partners(len(images))
        count = len(first) if self.config.factor == "patch" else 1
        alpha = torch.tensor(self.config.alpha)
        share = torch.distributions.Beta(alpha, alpha).sample((count,)).to(images.device).view(-1, 1, 1, 1, 1)
        seen = share * images[first] + (1.0 - share) * images[second]
        wanted = share * answers[first] + (1.0 - share) * answers[second]
        return weighted_mean((self.targets.probabilities(networks["student"](seen)) - wanted).pow(2))

    def partners(self, count: int) -> tuple[list[int], list[int]]:
        """Return two lists of rows: row k of the first list is mixed with row k of the second."""
        rows = list(range(count))
        if self.config.pairs == "half":
            return rows[: count // 2], rows[count // 2 : count // 2 * 2]
        return rows, rows[1:] + rows[:1]
