"""Distillation: a trained network teaches a smaller student on labelled and unlabelled patches.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015: the student matches the teacher's
probabilities at a raised temperature, and the labels where there are any. The gradient of the soft term shrinks with
the square of the temperature, so the term is multiplied by it (section 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from semiseg.bundle.bundle import read_manifest
from semiseg.bundle.manifest import DistillationTeacher, PretrainedWeights
from trainer.checkpoints import RUN
from trainer.engine import load_trained_network
from trainer.errors import RecipeError
from trainer.losses import supervised_loss, weighted_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, freeze, share_of_part
from trainer.patches import Batch
from trainer.recipe import Recipe, Section, Share
from trainer.targets import ExclusiveClasses


class Distil(Method):
    """L = (1 - a) L_sup(labelled) + a T^2 KL(teacher at T || student at T), over all patches."""

    name = "distil"

    class Config(Section):
        """Settings of the paper.

        Attributes:
            teacher: Folder of the finished run whose network is the teacher.
            temperature: Divisor T of both networks' logits.
            soft: Share a of the teacher's term in the loss. It is the same without unlabelled scans.
            labelled: Number of labelled patches per batch; by default half of the batch.
        """

        teacher: Path = Path()
        temperature: Annotated[float, Field(gt=0)] = 2.0
        soft: Share = 0.7
        labelled: Annotated[int, Field(ge=1)] | None = None

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """Read the settings and the teacher's manifest.

        Raises:
            RecipeError: No teacher is named, or its channels or outputs differ from the task's.
            BundleError: The teacher's folder is not a run.
        """
        super().__init__(recipe, task)
        run: Path = self.config.teacher
        if run == Path():
            raise RecipeError("methods.distil.teacher: name the finished run whose network is the teacher.")
        self._teacher = read_manifest(run / RUN)
        taught = (len(self._teacher.channels), self._teacher.outputs, self._teacher.activation)
        kind = "softmax" if isinstance(self.targets, ExclusiveClasses) else "sigmoid"
        own = (task.inputs, self.targets.channels, kind)
        if taught != own:
            raise RecipeError(
                f"methods.distil.teacher: the network of {run} has {taught[0]} channel(s) and {taught[1]} outputs "
                f"({taught[2]}), and these scans need {own[0]} and {own[1]} ({own[2]})."
            )

    def build(self) -> Networks:
        """Build the student, and load the teacher from its run."""
        _, teacher = load_trained_network(self.config.teacher)
        return {"student": self.build_student(), "teacher": freeze(teacher)}

    def step_plan(self, step: int) -> StepPlan:
        """Train the student on a batch of fixed composition in every step."""
        return StepPlan("train", {"student": self.student_rate(step)}, self.composition(self.config.labelled), step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised term on the labelled patches and the soft term on all patches."""
        logits = networks["student"](batch.images)
        scale = share_of_part(batch.labelled, step_plan.composition.labelled, batch, step_plan)
        labels = batch.labels[: batch.labelled]
        supervised = scale * supervised_loss(logits[: batch.labelled], labels, self.targets, batch.label_weights)
        with torch.no_grad():
            taught = networks["teacher"](batch.images)
        soft = self.soft_loss(logits, taught)
        share = float(self.config.soft)
        total = (1.0 - share) * supervised + share * soft
        return {"total": total, "supervised": supervised.detach(), "soft": soft.detach()}

    def soft_loss(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return T^2 KL(teacher || student), summed over classes (averaged over regions) and averaged over voxels."""
        t = float(self.config.temperature)
        target = self.targets.probabilities(taught.float() / t)
        divergence = self.targets.divergence(logits.float() / t, target)
        # Classes share one distribution; each region has its own.
        summed = divergence.sum(dim=1) if isinstance(self.targets, ExclusiveClasses) else divergence.mean(dim=1)
        return t**2 * weighted_mean(summed)

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the pretrained weights that the teacher started from, since the student learns from it."""
        return self._teacher.provenance.pretrained

    def taught_by(self) -> DistillationTeacher:
        """Return the teacher, for the manifest."""
        origin = self._teacher.provenance
        return DistillationTeacher(
            name=self._teacher.name,
            method=origin.method,
            student=origin.student,
            parameters=origin.parameters,
            labelled=origin.labelled,
            validation=self._teacher.validation,
        )
