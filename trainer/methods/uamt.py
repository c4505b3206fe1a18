"""UA-MT: a mean teacher whose student agrees only where the teacher is certain.

Yu et al., "Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation", MICCAI 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.losses import masked_mean
from trainer.methods.mean_teacher import MeanTeacher
from trainer.methods.method import Networks, StepPlan
from trainer.recipe import Positive, Share
from trainer.schedules import ramp_up


class UAMT(MeanTeacher):
    """Mean Teacher, with the consistency taken over voxels of which the teacher's uncertainty is below a threshold."""

    name = "uamt"

    class Config(MeanTeacher.Config):
        """Mean Teacher's, and how certain is certain.

        Attributes:
            passes: noisy passes of the teacher, dropout on, whose mean is judged. Without dropout in the student
                (``student.dropout``) they differ by the noise on their input alone.
            threshold: Uncertainty in bits below which a voxel counts at the start; it rises to 1 with the ramp. One bit
                is ln 2, the largest entropy of the paper's two classes; a voxel that is half one class and half
                another has it for any number of classes.
        """

        passes: Positive = 8
        threshold: Share = 0.75

    def consistency(self, networks: Networks, logits: Tensor, images: Tensor, step_plan: StepPlan) -> Tensor:
        """sum_v [U_v < H] ||p_v - p'_v||^2 / (C sum_v [U_v < H]); zero where no voxel is certain.

        The released code divides by 2 sum_v for its two classes; C is that for any number of them.
        """
        target = self.teacher_probabilities(networks["teacher"], images)
        certain = self.uncertainty(networks["teacher"], images) < self.largest_uncertainty(step_plan.student_update)
        distance = (self.targets.probabilities(logits) - target).pow(2).sum(dim=1)
        return masked_mean(distance, certain) / self.targets.channels

    @torch.no_grad()
    def uncertainty(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """U (N, X, Y, Z): the entropy of the mean of the noisy passes, in bits."""
        return self.targets.ambiguity(self.mean_probabilities(teacher, images, self.config.passes))

    def largest_uncertainty(self, update: int) -> float:
        """H(t) = h + (1 - h) r(t), in bits."""
        low = float(self.config.threshold)
        return low + (1.0 - low) * ramp_up(update, self.recipe.updates)
