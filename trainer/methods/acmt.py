"""AC-MT: a mean teacher whose consistency term is taken only where the prediction is ambiguous.

Xu et al., "Ambiguity-selective consistency regularization for mean-teacher semi-supervised medical image
segmentation", Medical Image Analysis 2023. The selection is the opposite of UA-MT's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.confident_learning import label_errors
from trainer.errors import RecipeError
from trainer.losses import masked_mean
from trainer.methods.mean_teacher import MeanTeacher
from trainer.methods.method import Networks, SegmentationTask, StepPlan
from trainer.network_configs import parse_network_config
from trainer.networks.features import features_into
from trainer.recipe import Positive, Recipe
from trainer.schedules import ramp_up
from trainer.targets import ExclusiveClasses

TINY = 1e-16
CERTAIN = 0.1  # largest standard deviation of a voxel's probabilities over the passes that makes a prototype
SOFTENING = 2.0  # temperature of the probabilities whose deviation is taken


class ACMT(MeanTeacher):
    """L_c = sum_v E_v ||p_v - p'_v||^2 / sum_v E_v, E the ambiguous voxels (Eq. 3); zero if there are none."""

    name = "acmt"

    class Config(MeanTeacher.Config):
        """Settings of Mean Teacher, and the selection of ambiguous voxels.

        Attributes:
            selection: Criterion of ambiguity: ``entropy`` of the student; ``model_uncertainty``, the entropy of the
                mean of the student's noisy passes; ``prototype_error``, the nearest class prototype disagrees with the
                student (the entropy of all other voxels is minimised); ``label_error``, confident learning finds the
                student's label wrong.
            threshold: Change of the least entropy that counts as ambiguous, with the ramp r, from 0.75 bits: up to 0.95
                (``entropy``) or 0.90 (``model_uncertainty``) as in the released ``code``, which its authors found
                better; down to 0.60 as in the ``paper``. One bit is ln 2, the largest entropy of the paper's two
                classes.
            passes: Number of noisy passes of ``model_uncertainty``.
            prototype_passes: Number of noisy passes of ``prototype_error``.
            certainty: Weight of the entropy of the voxels that ``prototype_error`` finds clean.
        """

        selection: Literal["entropy", "model_uncertainty", "prototype_error", "label_error"] = "entropy"
        threshold: Literal["code", "paper"] = "code"
        passes: Positive = 8
        prototype_passes: Positive = 10
        certainty: Annotated[float, Field(ge=0)] = 1.0

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`; two of the selections compare classes."""
        super().__init__(recipe, task)
        selection = self.config.selection
        if selection in ("prototype_error", "label_error") and not isinstance(self.targets, ExclusiveClasses):
            raise RecipeError(
                f"methods.acmt.selection: {selection} compares exclusive classes, and these segments overlap; "
                "take `entropy` or `model_uncertainty`."
            )
        if selection == "prototype_error":
            parse_network_config(recipe.student).module_name(
                "features"
            )  # refuses a student without a name for this module

    def consistency(self, networks: Networks, logits: Tensor, images: Tensor, step_plan: StepPlan) -> Tensor:
        """Return Eq. 3 over the voxels that ``selection`` finds."""
        probabilities = self.targets.probabilities(logits)
        squares = (probabilities - self.teacher_probabilities(networks["teacher"], images)).pow(2)
        selection = self.config.selection
        if selection == "entropy":
            ambiguous = self.targets.ambiguity(probabilities.detach()) >= self.least_entropy(step_plan.student_update)
            return masked_mean(squares.mean(dim=1), ambiguous)  # as released: the mask is repeated over the channels
        if selection == "model_uncertainty":
            uncertain = self.uncertainty(networks["student"], images)
            return masked_mean(squares.sum(dim=1), uncertain >= self.least_entropy(step_plan.student_update))
        decided = self.targets.decide(probabilities.detach())
        if selection == "label_error":
            wrong = label_errors(decided, self.teacher_probabilities(networks["teacher"], images))
            return masked_mean(squares.mean(dim=1), wrong, otherwise=squares.mean(dim=1))
        noisy = self.prototype_errors(networks["teacher"], images, decided)
        clean = masked_mean(self.targets.entropy(probabilities), ~noisy)
        return masked_mean(squares.mean(dim=1), noisy) + self.config.certainty * clean

    def least_entropy(self, update: int) -> float:
        """Return h(t), the least entropy of an ambiguous voxel, in bits."""
        rise = {"entropy": 0.20, "model_uncertainty": 0.15}.get(self.config.selection, 0.0)
        step = -0.15 if self.config.threshold == "paper" else rise
        return 0.75 + step * ramp_up(update, self.recipe.updates)

    @torch.no_grad()
    def uncertainty(self, student: nn.Module, images: Tensor) -> Tensor:
        """Return the entropy (N, X, Y, Z) of the mean of the student's noisy passes, in bits."""
        return self.targets.ambiguity(self.mean_probabilities(student, images, self.config.passes))

    @torch.no_grad()
    def prototype_errors(self, teacher: nn.Module, images: Tensor, decided: Tensor) -> Tensor:
        """Find the voxels (N, X, Y, Z) whose nearest class prototype is not their ``decided`` class.

        A prototype is the mean of the teacher's features, weighted by the class's probability, over the voxels of a
        class on which the noisy passes agree. A class without such a voxel has no prototype; without any prototype all
        voxels count as errors.
        """
        count = self.config.prototype_passes
        p = square = f = torch.zeros((), device=images.device)
        layer = parse_network_config(self.recipe.student).module_name("features")
        for _ in range(count):
            with features_into(teacher, layer, images.shape[2:]) as found:
                soft = self.targets.probabilities(teacher(images + self.noise(images)) / SOFTENING)
            p, square, f = p + soft / count, square + soft.pow(2) / count, f + found[0].float() / count
        certain = (square - p.pow(2)).clamp_min(0).sqrt().amax(dim=1) < CERTAIN
        best = p.argmax(dim=1)
        distances = []
        for c in range(self.targets.channels):
            weight = p[:, c] * (certain & (best == c))
            total = weight.sum()
            prototype = (f * weight[:, None]).sum(dim=(0, 2, 3, 4)) / total.clamp_min(TINY)
            distance = (f - prototype[None, :, None, None, None]).pow(2).sum(dim=1)
            distances.append(torch.where(total > 0, distance, torch.full_like(distance, float("inf"))))
        away = torch.stack(distances, dim=1)
        if not bool(torch.isfinite(away).any()):
            return torch.ones_like(decided, dtype=torch.bool)
        return away.argmin(dim=1) != decided
