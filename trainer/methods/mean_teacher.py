"""Mean Teacher: the student agrees with its own moving average on noisy unlabelled patches.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017; for 3D medical images as in Yu et al.,
UA-MT, MICCAI 2019, without its uncertainty mask.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.losses import supervised_loss, weighted_mean
from trainer.methods.method import Method, Networks, StepPlan, freeze, share_of_part
from trainer.moving_average import update_moving_average
from trainer.patches import Batch
from trainer.recipe import Section, Share
from trainer.schedules import ema_decay


class MeanTeacher(Method):
    """L = L_sup(labelled) + w(t) mean (p_student - p_teacher)^2, where the teacher is the student's moving average."""

    name = "mean_teacher"

    class Config(Section):
        """Settings of the paper's family.

        Attributes:
            weight: Largest consistency weight w_max.
            ramp: Share of the updates over which w(t) = w_max exp(-5 (1 - t/T)^2) rises.
            decay: Limit of the moving average's decay.
            noise: Standard deviation of the Gaussian noise on the teacher's input, clipped at twice this value.
            labelled: Number of labelled patches per batch; by default half of the batch.
            consistency_on: Patches that are compared: the ``unlabelled`` ones, or ``all`` of the batch.
            average_buffers: If True, the buffers of batch norms are averaged too; the papers average parameters only.
            export: Network that is kept: the ``student``, as in the papers, or its moving average (``teacher``).
        """

        weight: Annotated[float, Field(ge=0)] = 0.1
        ramp: Share = 1.0
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
        noise: Annotated[float, Field(ge=0)] = 0.1
        labelled: Annotated[int, Field(ge=1)] | None = None
        consistency_on: Literal["unlabelled", "all"] = "unlabelled"
        average_buffers: bool = False
        export: Literal["student", "teacher"] = "student"

    def build(self) -> Networks:
        """Build the student, and a teacher that starts as its copy and changes by averaging only."""
        student = self.build_student()
        return {"student": student, "teacher": freeze(copy.deepcopy(student))}

    def step_plan(self, step: int) -> StepPlan:
        """Train the student on a batch of fixed composition in every step."""
        composition = self.composition(self.config.labelled)
        return StepPlan("train", {"student": self.student_rate(step)}, composition, step)

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """Set both networks to train mode: the papers' teacher keeps its dropout and batch statistics."""
        for network in networks.values():
            network.train()

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised term and the weighted consistency term."""
        logits = networks["student"](batch.images)
        scale = share_of_part(batch.labelled, step_plan.composition.labelled, batch, step_plan)
        labels = batch.labels[: batch.labelled]
        supervised = scale * supervised_loss(logits[: batch.labelled], labels, self.targets, batch.label_weights)
        everywhere = self.config.consistency_on == "all"
        first = 0 if everywhere else batch.labelled
        if not everywhere and not step_plan.composition.unlabelled:
            return {"total": supervised, "supervised": supervised.detach()}
        consistency = self.consistency(networks, logits[first:], batch.images[first:], step_plan)
        if not everywhere:
            consistency = consistency * share_of_part(
                len(batch) - first, step_plan.composition.unlabelled, batch, step_plan
            )
        total = supervised + self.weight(step_plan.student_update) * consistency
        told = {"supervised": supervised.detach(), "consistency": consistency.detach()}
        return {"total": total, **told}

    def consistency(self, networks: Networks, logits: Tensor, images: Tensor, step_plan: StepPlan) -> Tensor:
        """Return mean (p_student - p_teacher)^2 over voxels and channels."""
        target = self.teacher_probabilities(networks["teacher"], images)
        return weighted_mean((self.targets.probabilities(logits) - target).pow(2))

    @torch.no_grad()
    def teacher_probabilities(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """Return the teacher's probabilities of patches (N, C, X, Y, Z) with noise, in one pass."""
        return self.targets.probabilities(teacher(images + self.noise(images)))

    def mean_probabilities(self, network: nn.Module, images: Tensor, passes: int) -> Tensor:
        """Return the mean of :meth:`teacher_probabilities` over several passes."""
        mean = self.teacher_probabilities(network, images)
        for _ in range(1, passes):
            mean += self.teacher_probabilities(network, images)
        return mean / passes

    def noise(self, images: Tensor) -> Tensor:
        """See :func:`bounded_noise`."""
        return bounded_noise(images, self.config.noise)

    def after_update(self, networks: Networks, step_plan: StepPlan) -> None:
        """Update the teacher: theta' <- a theta' + (1 - a) theta with a = min(1 - 1/(t+1), decay)."""
        decay = ema_decay(step_plan.student_update, self.config.decay)
        update_moving_average(networks["teacher"], networks["student"], decay, buffers=self.config.average_buffers)

    def exported(self, networks: Networks) -> nn.Module:
        """Return the student or its moving average, as the setting ``export`` says."""
        return networks[self.config.export]


def bounded_noise(images: Tensor, spread: float) -> Tensor:
    """Return Gaussian noise of standard deviation ``spread``, clipped at twice this value."""
    return (torch.randn_like(images) * spread).clamp(-2 * spread, 2 * spread)
