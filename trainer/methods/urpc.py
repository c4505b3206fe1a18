"""URPC: the predictions of all levels of one decoder agree with their mean, weighted by their certainty.

Luo et al., "Efficient semi-supervised gross target volume of nasopharyngeal carcinoma segmentation via uncertainty
rectified pyramid consistency", MICCAI 2021; "Semi-supervised medical image segmentation via uncertainty rectified
pyramid consistency", Medical Image Analysis 2022.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from trainer.errors import RecipeError
from trainer.losses import supervised_loss, weighted_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, share_of_part
from trainer.methods.unsupported_keys import reject_deep_supervision
from trainer.networks.outputs import further_outputs
from trainer.patches import Batch
from trainer.recipe import Recipe, Section, Share


class URPC(Method):
    """L = mean_s L_sup(p_s) + w(t) mean_s (sum_v e^(-D_s) (p_s - p)^2 / sum_v e^(-D_s) + mean_v D_s).

    p_s are the probabilities of level s of the decoder at full size, p their mean over the levels, and D_s the
    divergence of the two at a voxel.
    """

    name = "urpc"
    coarse_outputs = True

    class Config(Section):
        """The paper's settings.

        Attributes:
            weight: Largest weight w_max of the unsupervised term.
            ramp: Share of the updates over which w(t) rises.
            labelled: Number of labelled patches per batch; by default half of the batch.
            divergence: Direction of D_s: KL(p || p_s), ``from_mean``, as released, or KL(p_s || p), ``to_mean``, as
                printed.
        """

        weight: Annotated[float, Field(ge=0)] = 0.1
        ramp: Share = 1.0
        labelled: Annotated[int, Field(ge=1)] | None = None
        divergence: Literal["from_mean", "to_mean"] = "from_mean"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`.

        Raises:
            RecipeError: Deep supervision is requested, though the loss is taken at all levels already.
        """
        super().__init__(recipe, task)
        reject_deep_supervision(self, "trains the coarser levels itself")

    def build(self) -> Networks:
        """Build the student, with a 1x1x1 convolution to logits at each coarser level, which is not exported."""
        return {"student": self.build_student()}

    def step_plan(self, step: int) -> StepPlan:
        """Train the student on a batch of fixed composition in every step."""
        composition = self.composition(self.config.labelled)
        return StepPlan("train", {"student": self.student_rate(step)}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised term of all levels and their consistency on unlabelled patches."""
        n = batch.labelled
        levels = self.pyramid(networks, batch)
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        parts = [supervised_loss(y[:n], batch.labels[:n], self.targets, batch.label_weights) for y in levels]
        supervised = scale * torch.stack(parts).mean()
        if not step_plan.composition.unlabelled:
            return {"total": supervised, "supervised": supervised.detach()}
        scale = share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
        rectified, uncertainty = self.consistency([y[n:] for y in levels])
        total = supervised + self.weight(step_plan.student_update) * scale * (rectified + uncertainty)
        told = {"supervised": supervised.detach(), "consistency": rectified.detach()}
        return {"total": total, **told, "uncertainty": uncertainty.detach()}

    def pyramid(self, networks: Networks, batch: Batch) -> list[Tensor]:
        """Return logits (N, K, X, Y, Z) of all levels, finest first; the coarser ones are enlarged trilinearly.

        Raises:
            RecipeError: The student returned no coarser logits.
        """
        with further_outputs(networks["student"]) as heard:
            logits = networks["student"](batch.images)
        if not heard:
            raise RecipeError("urpc reads coarser logits, and the student returned none; take another student.")
        size = logits.shape[2:]
        coarse = heard[-1][1]
        return [logits, *(functional.interpolate(y, size=size, mode="trilinear", align_corners=False) for y in coarse)]

    def consistency(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the rectified distance to the mean and the mean uncertainty, each a mean over the levels.

        Gradients pass through the mean prediction and through the weights, as released.
        """
        probabilities = [self.targets.probabilities(y) for y in levels]
        mean = torch.stack(probabilities).mean(dim=0)
        logs = torch.stack([self.targets.log_distributions(y) for y in levels])
        log_mean = logs.logsumexp(dim=0) - math.log(len(levels))
        rectified, uncertainty = [], []
        for p, log_p in zip(probabilities, logs, strict=True):
            first, second = (log_mean, log_p) if self.config.divergence == "from_mean" else (log_p, log_mean)
            apart = (first.exp() * (first - second)).sum(dim=1).mean(dim=1)
            rectified.append(weighted_mean((p - mean).pow(2).mean(dim=1), torch.exp(-apart)))
            uncertainty.append(weighted_mean(apart))
        return torch.stack(rectified).mean(), torch.stack(uncertainty).mean()
