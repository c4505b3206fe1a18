"""BCP: labelled and unlabelled patches are pasted into one another, in both directions.

Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation", CVPR 2023.

Stage 1 pastes labelled patches into labelled ones. In stage 2 a mean teacher labels the unlabelled patches, and the
student learns from labelled patches with an unlabelled inside and from unlabelled ones with a labelled inside.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor, nn

from semiseg.bundle.postprocessing import CONNECTIVITY
from trainer.errors import RecipeError
from trainer.losses import dice_pooled
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, freeze
from trainer.moving_average import update_moving_average
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Recipe, Section, Share


class BCP(Method):
    """L = Q_in(labelled inside, alpha outside) + Q_out(alpha inside, labelled outside); Q is (CE + Dice) / 2."""

    name = "bcp"
    patches_together = 4  # two labelled, two unlabelled

    class Config(Section):
        """The paper's settings.

        Attributes:
            pretrain: Share of the updates in stage 1 (2000 of 17000).
            box: Side of the pasted box as a share of the patch's side.
            weight: Weight alpha of voxels with a pseudo-label.
            decay: Constant decay of the teacher's moving average.
            largest_component: If True, each segment of a pseudo-label is reduced to its largest component.
            export: Network that is kept: the ``student``, as in the paper, or its moving average (``teacher``).
        """

        pretrain: Share = 0.12
        box: Annotated[float, Field(gt=0, lt=1)] = 2.0 / 3.0
        weight: Annotated[float, Field(ge=0)] = 0.5
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
        largest_component: bool = True
        export: Literal["student", "teacher"] = "student"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`; a labelled and an unlabelled patch are pasted into each other, so both are needed.

        Raises:
            RecipeError: There are no unlabelled scans.
        """
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError("bcp learns from unlabelled scans, and the split leaves none; take `supervised`.")

    def build(self) -> Networks:
        """Build the student and its moving average."""
        student = self.build_student()
        return {"student": student, "teacher": freeze(copy.deepcopy(student))}

    def step_plan(self, step: int) -> StepPlan:
        """Train on labelled patches alone in stage 1, then on batches that are half labelled."""
        first = step < round(self.config.pretrain * self.recipe.updates)
        half = self.recipe.batch // 2
        composition = BatchComposition(self.recipe.batch, 0) if first else BatchComposition(half, half)
        return StepPlan("pretrain" if first else "train", {"student": self.student_rate(step)}, composition, step)

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """Set both networks to train mode, as released."""
        for network in networks.values():
            network.train()

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the loss on pasted labelled patches in stage 1; that of both directions in stage 2 (Eqs. 7 to 9)."""
        outside = self.paste_mask(batch)
        images, half = batch.images, len(batch) // 2
        if step_plan.stage == "pretrain":
            mixed = images[:half] * outside + images[half:] * (1 - outside)
            logits = networks["student"](mixed)
            a, b = (self.targets.encode(part) for part in (batch.labels[:half], batch.labels[half:]))
            known = torch.ones_like(outside)
            if batch.weights is not None:
                known = batch.weights[:half, None] * outside + batch.weights[half:, None] * (1 - outside)
            total = self._pasted(logits, a * outside + b * (1 - outside), known)
            return {"total": total, "pasted": total.detach()}
        quarter = half // 2
        labels = self.targets.encode(batch.labels[:half])
        pseudo = self.targets.encode(self.pseudo_labels(networks["teacher"], images[half:]))
        inside = 1 - outside
        # A labelled patch with an unlabelled inside, from the first quarters; the reverse, from the second quarters.
        inward = networks["student"](images[:quarter] * outside + images[half : half + quarter] * inside)
        outward = networks["student"](images[half + quarter :] * outside + images[quarter:half] * inside)
        alpha = self.config.weight
        first, second = outside, inside  # where labels count, in the first and in the second quarter
        if batch.weights is not None:
            first, second = batch.weights[:quarter, None] * outside, batch.weights[quarter:half, None] * inside
        around = self._pasted(inward, labels[:quarter], first) + alpha * self._pasted(inward, pseudo[:quarter], inside)
        within = alpha * self._pasted(outward, pseudo[quarter:], outside) + self._pasted(
            outward, labels[quarter:], second
        )
        return {"total": around + within, "inward": around.detach(), "outward": within.detach()}

    def after_update(self, networks: Networks, step_plan: StepPlan) -> None:
        """Update the teacher: a copy of the student in stage 1, a moving average of it in stage 2."""
        decay = 0.0 if step_plan.stage == "pretrain" else self.config.decay
        # As released, only parameters are averaged. Stage 1 copies the buffers, so that the teacher has statistics.
        update_moving_average(networks["teacher"], networks["student"], decay, buffers=step_plan.stage == "pretrain")

    def exported(self, networks: Networks) -> nn.Module:
        """Return the student or its moving average, as the setting ``export`` says."""
        return networks[self.config.export]

    def paste_mask(self, batch: Batch) -> Tensor:
        """Return M (1, 1, X, Y, Z), one outside a box and zero in it; the box's position depends on the step alone."""
        sides = batch.images.shape[2:]
        random = np.random.default_rng((self.recipe.seed, 6, batch.step))
        mask = torch.ones((1, 1, *sides))
        box: list[slice] = []
        for side in sides:
            length = max(1, int(side * self.config.box))
            start = int(random.integers(0, side - length + 1))
            box.append(slice(start, start + length))
        x, y, z = box
        mask[0, 0, x, y, z] = 0
        return mask.to(batch.images.device)

    @torch.no_grad()
    def pseudo_labels(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """Return the teacher's decisions (N, X, Y, Z), each segment reduced to its largest component if so set."""
        decided = self.targets.decide(self.targets.probabilities(teacher(images)))
        if not self.config.largest_component:
            return decided
        masks = self.targets.encode(decided).bool().cpu().numpy()
        first = self.targets.channels - self.targets.segments  # a background channel is not reduced
        kept = np.zeros_like(masks)
        for index, channel in np.ndindex(masks.shape[0], self.targets.segments):
            kept[index, first + channel] = largest_component(masks[index, first + channel])
        if first:
            kept[:, 0] = ~kept[:, 1:].any(axis=1)
        return self.targets.decide(torch.from_numpy(kept).float()).to(images.device)

    def _pasted(self, logits: Tensor, target: Tensor, where: Tensor) -> Tensor:
        """Return (CE + Dice) / 2 over the voxels ``where``: a mask (1, 1, X, Y, Z) or weights (N, 1, X, Y, Z)."""
        crossed = self.targets.cross_entropy(logits, target) * where[:, 0]
        count = where.sum() * (logits.shape[0] // where.shape[0])
        mean = crossed.sum() / count.clamp_min(1)
        return 0.5 * (mean + dice_pooled(self.targets.probabilities(logits) * where, target * where))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest 26-connected component of a mask (X, Y, Z); an empty mask stays empty."""
    components, count = ndimage.label(mask, structure=CONNECTIVITY)
    if count <= 1:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.asarray(components == sizes.argmax())
