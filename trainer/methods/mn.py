"""M&N: a 2D network pretrained on natural images and a 3D network teach each other.

Yeung et al., "Learning from 2D natural images for semi-supervised 3D medical image segmentation" (M&N), 2025. Where the
paper leaves a choice, the defaults follow the released code.

Stage 1 trains both networks separately on the labelled patches. Stage 2 alternates: one epoch in which the 2D network
learns from the labels and the 3D network's pseudo-masks, one in which the 3D network learns from the labels and the 2D
network's pseudo-masks. Learning-rate-guided sampling (Eq. 10) replaces labelled by unlabelled patches in a batch as the
rate falls.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from semiseg.bundle.manifest import PretrainedWeights
from trainer.errors import RecipeError
from trainer.losses import dice_pooled, weighted_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan
from trainer.networks.slicewise import SlicewiseNetwork
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Optimiser, Positive, Recipe, Section, Share
from trainer.schedules import cosine_decay, warm_up_cosine
from trainer.slices import to_slices
from trainer.teachers import Network2D, TeacherConfig, build_teacher


class MN(Method):
    """L = KL(target || prediction) + Dice(prediction, target); the target is a label or the other network's softmax."""

    name = "mn"
    former_members: ClassVar[dict[str, str]] = {"sliced": "as_volume_network"}

    class Config(Section):
        """The paper's settings and the rows of its ablation table.

        Attributes:
            teacher: The 2D network and its fine-tuning (LoRA, decoder, whole).
            teacher_optimiser: Optimiser of the 2D network.
            stage1: Share of the updates in which both networks see labelled patches only (500 of 4000 epochs).
            warm_up: Share of stage 1 in which the rate rises from 1% (50 of 500 epochs).
            iterations: Number of updates per epoch; the rate and the composition of batches change between epochs (8 in
                the released code).
            cotrain: Training of stage 2: ``iterative``, or ``fixed2d``, in which the 2D network does not learn.
            lrg: Share of unlabelled patches: it follows the learning rate (``lr``, Eq. 10) or the epoch (``linear``, as
                released), is constant (``fixed``), or comes from drawing patches evenly from all scans (``uniform``).
            fixed_unlabelled: Number of unlabelled patches of a batch if ``lrg`` is ``fixed``.
            loss: Form of the loss: ``pooled``, as released, has one Dice over the mixed batch, and the divergence
                averaged over voxels and channels. ``weighted`` is Eq. 5, in which cross-entropy and KL of a voxel are
                sums over the channels, and both terms are weighted by the shares of labelled and unlabelled patches.
            weight_kl, weight_dice: Weights of the two terms.
            slices: Number of slices of each volume on which the 2D network learns in a step; None takes all, as in the
                paper.
            chunk: Number of slices per call if the 2D network only predicts.
            refresh: Shares of the updates at which pseudo-masks of whole scans are renewed. They only decide where
                patches are cut.
        """

        teacher: TeacherConfig = TeacherConfig()
        teacher_optimiser: Optimiser = Optimiser(rate=1e-3)
        stage1: Share = 0.125
        warm_up: Share = 0.1
        iterations: Positive = 8
        cotrain: Literal["iterative", "fixed2d"] = "iterative"
        lrg: Literal["lr", "linear", "fixed", "uniform"] = "lr"
        fixed_unlabelled: Annotated[int, Field(ge=0)] = 2
        loss: Literal["pooled", "weighted"] = "pooled"
        weight_kl: Annotated[float, Field(ge=0)] = 1.0
        weight_dice: Annotated[float, Field(ge=0)] = 1.0
        slices: Positive | None = None
        chunk: Positive = 64
        refresh: tuple[Share, ...] = (0.125, 0.25, 0.375, 0.5, 0.75)

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`.

        Raises:
            RecipeError: The number of updates is not a whole number of epochs.
        """
        super().__init__(recipe, task)
        if self.recipe.updates % self.config.iterations:
            raise RecipeError(
                f"methods.mn.iterations: {self.recipe.updates} updates are not a whole number of epochs of "
                f"{self.config.iterations} updates."
            )

    def build(self) -> Networks:
        """Build the 3D student and the 2D teacher."""
        student = self.build_student()
        return {"student": student, "teacher": self.build_2d()}

    def build_2d(self) -> Network2D:
        """Build the 2D network.

        Raises:
            RecipeError: The patch's slices are too small for it.
        """
        teacher = build_teacher(self.config.teacher, self.task.inputs, self.targets.channels)
        sides = [n for axis, n in enumerate(self.recipe.size()) if axis != self.task.slice_axis]
        if min(sides) < teacher.min_slice_size():
            raise RecipeError(
                f"The 2D network needs slices of at least {teacher.min_slice_size()} voxels per side; the patch's have "
                f"{sides[0]} x {sides[1]}. Enlarge them (methods.mn.teacher.enlarge) or take a larger patch."
            )
        return teacher

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the 2D network's pretrained weights."""
        teacher: TeacherConfig = self.config.teacher
        return teacher.pretrained()

    def optimiser(self, network: str) -> Optimiser:
        """Return the settings of the 2D network's optimiser, or of the recipe's for the student."""
        optimiser: Optimiser = self.config.teacher_optimiser
        return optimiser if network == "teacher" else self.recipe.optimiser

    # --- schedule of the training ---------------------------------------------------------------------------------

    @property
    def epochs(self) -> tuple[int, int]:
        """Numbers of epochs of stage 1 and of stage 2, counted for the student."""
        total = self.recipe.updates // self.config.iterations
        first = min(round(self.config.stage1 * total), total)
        return first, total - first

    @property
    def steps(self) -> int:
        """Number of steps: in stage 1 a step trains both networks, in stage 2 each network has its own steps."""
        first, second = self.epochs
        return int(self.config.iterations * (first + second * self._epochs_per_round))

    def step_plan(self, step: int) -> StepPlan:
        """Train both networks in stage 1; in stage 2, the 2D and the 3D network in alternate epochs."""
        length = self.config.iterations
        first, second = self.epochs
        epoch, within = divmod(step, length)
        if epoch < first:
            factor = warm_up_cosine(epoch, first, round(self.config.warm_up * first))
            return StepPlan(
                "labelled", self._rates(factor, "student", "teacher"), BatchComposition(self.recipe.batch, 0), step
            )
        pair, part = divmod(epoch - first, self._epochs_per_round)
        learner = "teacher" if self._epochs_per_round == 2 and part == 0 else "student"
        factor = cosine_decay(pair, second)
        update = (first + pair) * length + (within if learner == "student" else 0)
        unlabelled = self.unlabelled_in_batch(pair, step) if self.task.unlabelled else 0
        composition = BatchComposition(self.recipe.batch - unlabelled, unlabelled)
        return StepPlan(f"cotrain-{learner}", self._rates(factor, learner), composition, update)

    def unlabelled_in_batch(self, epoch: int, step: int) -> int:
        """Return b_u of a stage-2 ``epoch``: Eq. 10, floor((eta_0 - eta) / (eta_0 - eta_end) B) with eta_end = 0."""
        batch, second = self.recipe.batch, self.epochs[1]
        if self.config.lrg == "fixed":
            return int(min(self.config.fixed_unlabelled, batch))
        if self.config.lrg == "uniform":
            share = self.task.unlabelled / (self.task.unlabelled + self.task.labelled)
            return int(np.random.default_rng((self.recipe.seed, 3, step)).binomial(batch, share))
        fallen = 1.0 - cosine_decay(epoch, second) if self.config.lrg == "lr" else epoch / max(second, 1)
        # The tolerance keeps floor() from losing a patch when rounding takes a whole number slightly down.
        return min(batch, math.floor(fallen * batch + 1e-9))

    def refreshes_foreground(self, step: int) -> bool:
        """Return True at the chosen shares of the student's epochs, before the student's part."""
        length = self.config.iterations
        total = sum(self.epochs)
        step_plan = self.step_plan(step)
        if step % length or "student" not in step_plan.rates or step_plan.stage == "labelled":
            return False
        epoch = step_plan.student_update // length
        return epoch in {round(share * total) for share in self.config.refresh}

    @property
    def _epochs_per_round(self) -> int:
        return 2 if self.config.cotrain == "iterative" else 1

    def _rates(self, factor: float, *networks: str) -> dict[str, float]:
        return {name: self.optimiser(name).rate * factor for name in networks}

    # --- losses ---------------------------------------------------------------------------------------------------

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the labelled loss of both networks, or the co-training loss (Eq. 5) of the one that learns."""
        terms: dict[str, Tensor] = {}
        if "student" in step_plan.rates:
            target = self._target(batch, networks["teacher"] if step_plan.composition.unlabelled else None, flat=True)
            logits = networks["student"](batch.images)
            weights = _all_weights(batch)
            terms["student"] = self.mixed_loss(logits, target, batch.labelled, step_plan.composition, weights)
        if "teacher" in step_plan.rates:
            target = self._target(batch, networks["student"] if step_plan.composition.unlabelled else None, flat=False)
            terms["teacher"] = self.loss_2d(networks["teacher"], batch, target, step_plan.composition)
        return {"total": torch.stack(list(terms.values())).sum(), **{k: v.detach() for k, v in terms.items()}}

    def mixed_loss(
        self,
        logits: Tensor,
        target: Tensor,
        labelled: int,
        composition: BatchComposition,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return KL and Dice between predictions and targets (N, C, ...), of which the first ``labelled`` are labels.

        ``pooled`` has one mean and one Dice over the batch. Its KL part is (b_l/B) KL_l + (b_u/B) KL_u divided by the
        number of channels; its Dice part only approximates the weighted one. ``weighted`` is Eq. 5; ``composition``
        holds b_l and b_u.
        """
        if self.config.loss == "pooled" or not composition.labelled or not composition.unlabelled:
            return self._pair(logits, target, weights)
        count = logits.shape[0]
        parts = ((slice(0, labelled), labelled, weights), (slice(labelled, None), count - labelled, None))
        pairs = [
            n / count * self._pair(logits[rows], target[rows], None if w is None else w[rows]) for rows, n, w in parts
        ]
        return torch.stack(pairs).sum()

    def _pair(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Return weighted KL plus Dice; for one-hot targets KL is cross-entropy (over C if pooled, as released)."""
        divergences = self.targets.divergence(logits, target)
        if self.config.loss == "weighted":
            divergences = self.targets.over_channels(divergences)
        by_value = weights
        if weights is not None and divergences.ndim > weights.ndim:
            by_value = weights[:, None].expand_as(divergences)
        divergence = weighted_mean(divergences, by_value)
        dice = dice_pooled(self.targets.probabilities(logits), target, weights)
        return self.config.weight_kl * divergence + self.config.weight_dice * dice

    def loss_2d(self, teacher: nn.Module, batch: Batch, target: Tensor, composition: BatchComposition) -> Tensor:
        """Return the 2D network's loss on the slices of a batch, against encoded targets (N, C, X, Y, Z)."""
        axis = self.task.slice_axis
        depth = batch.images.shape[2 + axis]
        images, wanted, weights = batch.images, target, _all_weights(batch)
        count = self.config.slices
        if count is not None and count < depth:
            # The same slices are drawn for image and target; the choice depends on the step alone.
            random = np.random.default_rng((self.recipe.seed, 4, batch.step))
            rows = torch.from_numpy(np.sort(random.choice(depth, count, replace=False))).to(images.device)
            images, wanted = images.index_select(2 + axis, rows), target.index_select(2 + axis, rows)
            weights = None if weights is None else weights.index_select(1 + axis, rows)
            depth = count
        logits = teacher(to_slices(images, axis))
        flat = None if weights is None else to_slices(weights[:, None], axis)[:, 0]
        return self.mixed_loss(logits, to_slices(wanted, axis), batch.labelled * depth, composition, flat)

    def committee(self, networks: Networks) -> Networks:
        """Return the 3D network, and the 2D network applied slice by slice."""
        return {"3D": networks["student"], "2D": self.as_volume_network(networks["teacher"])}

    @torch.no_grad()
    def _target(self, batch: Batch, other: nn.Module | None, *, flat: bool) -> Tensor:
        """Return encoded labels, then for unlabelled patches soft masks of the ``other`` network (2D if ``flat``)."""
        labels = self.targets.encode(batch.labels[: batch.labelled])
        images = batch.images[batch.labelled :]
        if other is None or not len(images):
            return labels
        logits = self.as_volume_network(other)(images) if flat else other(images)
        return torch.cat([labels, self.targets.probabilities(logits)])

    def as_volume_network(self, teacher: nn.Module) -> SlicewiseNetwork:
        """Return the 2D network as a network for volumes (N, C, X, Y, Z)."""
        return SlicewiseNetwork(teacher, self.task.slice_axis, self.config.chunk)


def _all_weights(batch: Batch) -> Tensor | None:
    """Return a batch's weights, which are 1 at all voxels of unlabelled patches; None if all weights are 1."""
    if batch.weights is None:
        return None
    return torch.cat([batch.weights[: batch.labelled], torch.ones_like(batch.weights[batch.labelled :])])
