"""UA-MT: a mean teacher whose consistency term is taken only where the teacher is certain.

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
    """Mean Teacher with its consistency term over the voxels where the teacher's uncertainty is below a threshold."""

    name = "uamt"

    class Config(MeanTeacher.Config):
        """Settings of Mean Teacher, and the threshold of the uncertainty.

        Attributes:
            passes: Number of noisy passes of the teacher, with dropout, whose mean gives the uncertainty. Without
                dropout in the student (``student.dropout``) the passes differ by the noise on their input alone.
            threshold: Uncertainty in bits below which a voxel counts at the start; it rises to 1 with the ramp. One bit
                is ln 2, the largest entropy of the paper's two classes. For any number of classes it is the uncertainty
                of a voxel that is half one class and half another.
        """

        passes: Positive = 8
        threshold: Share = 0.75

    def consistency(self, networks: Networks, logits: Tensor, images: Tensor, step_plan: StepPlan) -> Tensor:
        """Return sum_v [U_v < H] ||p_v - p'_v||^2 / (C sum_v [U_v < H]), or zero if no voxel is certain.

        The released code divides by 2 sum_v for its two classes; C generalises this to any number of classes.
        """
        target = self.teacher_probabilities(networks["teacher"], images)
        certain = self.uncertainty(networks["teacher"], images) < self.largest_uncertainty(step_plan.student_update)
        distance = (self.targets.probabilities(logits) - target).pow(2).sum(dim=1)
        return masked_mean(distance, certain) / self.targets.channels

    @torch.no_grad()
    def uncertainty(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """Return U (N, X, Y, Z), the entropy of the mean of the noisy passes, in bits."""
        return self.targets.ambiguity(self.mean_probabilities(teacher, images, self.config.passes))

    def largest_uncertainty(self, update: int) -> float:
        """Return H(t) = h + (1 - h) r(t), in bits."""
        low = float(self.config.threshold)
        return low + (1.0 - low) * ramp_up(update, self.recipe.updates)
