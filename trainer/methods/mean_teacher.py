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

from trainer.losses import supervised_loss
from trainer.methods.method import Method, Networks, Turn, freeze
from trainer.patches import Batch, Mixture
from trainer.recipe import Section, Share
from trainer.schedules import ema_decay, ramp_up


class MeanTeacher(Method):
    """L = L_sup(labelled) + w(t) mean (p_student - p_teacher)^2."""

    name = "mean_teacher"

    class Switches(Section):
        """Settings of the paper's family.

        Attributes:
            weight: the largest consistency weight w_max.
            ramp: share of the updates over which w(t) = w_max exp(-5 (1 - t/T)^2) rises.
            decay: limit of the moving average's decay.
            noise: standard deviation of the Gaussian noise on the teacher's input, cut at twice that.
            labelled: labelled patches per batch; by default half of it.
            consistency_on: compare on unlabelled patches, or on the whole batch.
            average_buffers: average buffers (batch norm) too; the papers average parameters only.
            export: keep the student, as the papers do, or its moving average.
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
        """The student and a teacher that starts as its copy and is moved by averaging only."""
        student = self.build_student()
        return {"student": student, "teacher": freeze(copy.deepcopy(student))}

    def turn(self, step: int) -> Turn:
        """Every step trains the student on a fixed mixture."""
        labelled = min(self.switches.labelled or (self.recipe.batch + 1) // 2, self.recipe.batch)
        mixture = Mixture(labelled, self.recipe.batch - labelled if self.task.unlabelled else 0)
        return Turn("train", {"student": self.student_rate(step)}, mixture, step)

    def prepare(self, networks: Networks, turn: Turn) -> None:
        """Both in train mode: the papers' teacher keeps its dropout and batch statistics."""
        for network in networks.values():
            network.train()

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """The supervised term and the weighted consistency term."""
        logits = networks["student"](batch.images)
        supervised = logits.sum() * 0.0  # a part of a batch may hold no labelled patch
        if batch.labelled:
            supervised = supervised_loss(logits[: batch.labelled], batch.labels[: batch.labelled])
            supervised = supervised * _part(batch.labelled, turn.mixture.labelled, batch, turn)
        everywhere = self.switches.consistency_on == "all"
        first = 0 if everywhere else batch.labelled
        if first == len(batch):
            return {"total": supervised, "supervised": supervised.detach()}
        weight = self.consistency_weight(turn.student_update)
        images = batch.images[first:]
        with torch.no_grad():
            target = torch.softmax(networks["teacher"](images + self._noise(images)).float(), dim=1)
        consistency = (torch.softmax(logits[first:].float(), dim=1) - target).pow(2).mean()
        if not everywhere:
            consistency = consistency * _part(len(batch) - first, turn.mixture.unlabelled, batch, turn)
        return {
            "total": supervised + weight * consistency,
            "supervised": supervised.detach(),
            "consistency": consistency.detach(),
        }

    def after_update(self, networks: Networks, turn: Turn) -> None:
        """theta' <- a theta' + (1 - a) theta with a = min(1 - 1/(t+1), decay)."""
        decay = ema_decay(turn.student_update, self.switches.decay)
        average_into(networks["teacher"], networks["student"], decay, buffers=self.switches.average_buffers)

    def exported(self, networks: Networks) -> nn.Module:
        """The student, or by switch its moving average."""
        return networks[self.switches.export]

    def consistency_weight(self, update: int) -> float:
        """w(t)."""
        return float(self.switches.weight * ramp_up(update, self.switches.ramp * self.recipe.updates))

    def _noise(self, images: Tensor) -> Tensor:
        noise = torch.randn_like(images) * self.switches.noise
        return noise.clamp(-2 * self.switches.noise, 2 * self.switches.noise)


def _part(patches: int, of: int, batch: Batch, turn: Turn) -> float:
    """The weight of a mean over ``patches`` when they are a part of the ``of`` that the whole batch holds.

    The loop weights a part of a batch by its share of all patches; a mean over the labelled ones alone needs their
    share of the labelled ones. It is 1 for a whole batch.
    """
    return patches * (turn.mixture.labelled + turn.mixture.unlabelled) / (of * len(batch))


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, decay: float, *, buffers: bool) -> None:
    """Move the teacher's parameters towards the student's: decay times its own plus the rest of the student's."""
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    for mine, theirs in pairs:
        mine.mul_(decay).add_(theirs.detach(), alpha=1.0 - decay)
    if buffers:
        for kept, current in zip(teacher.buffers(), student.buffers(), strict=True):
            if kept.is_floating_point():
                kept.mul_(decay).add_(current, alpha=1.0 - decay)
            else:
                kept.copy_(current)
