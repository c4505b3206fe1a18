"""MagicNet: cubes of patches are mixed across scans, and segmented one by one within a scan.

Chen et al., "MagicNet: semi-supervised multi-organ segmentation via magic-cube partition and recovery", CVPR 2023.

The paper un-mixes the features before its 1x1x1 head; with such a head, un-mixing the logits, as here, is the same.
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainer.cubes import draw_orders, from_cubes, mix_cubes, to_cubes, unmix_cubes
from trainer.errors import RecipeError
from trainer.losses import dice_pooled, weighted_mean
from trainer.methods.mean_teacher import bounded_noise
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, freeze, share_of_part
from trainer.moving_average import update_moving_average
from trainer.network_configs import parse_network_config
from trainer.networks.features import features_out
from trainer.parallel import sum_over_processes
from trainer.patches import Batch
from trainer.recipe import Positive, Recipe, Section, Share
from trainer.schedules import ema_decay


class MagicNet(Method):
    """L = (CE + Dice + Dice_cross + Dice_within)(labelled) / 4 + 0.1 L_location + w(t) Dice_cross(pseudo-labels)."""

    name = "magicnet"
    patches_together = 2  # a single patch cannot be mixed

    class Config(Section):
        """The paper's settings and the rows of its ablation table.

        Attributes:
            cubes: Number of cubes per axis; the size of a cube must suit the student (3 of 32 voxels in the paper).
            weight: Largest weight w_max of the pseudo-labels.
            ramp: Share of the updates over which w(t) rises.
            decay: Limit of the moving average's decay.
            noise: Standard deviation of the noise on the teacher's input, clipped at twice this value.
            labelled: Number of labelled patches per batch; by default half of the batch.
            location: Weight of the classification of a cube's position in the patch.
            hidden: Width of the hidden layer of the location head.
            cross, within: If True, the cross-image branch, or the within-image branch, is trained.
            blend: If True, the prediction from the cubes is blended into pseudo-labels. Its share at a voxel is the
                frequency of the teacher's class there, relative to the most frequent class: frequent classes follow the
                cubes, rare ones the teacher.
            blend_from: Share of the updates after which predictions are blended (100 of 70000).
            temperature: T; class counts are raised to the power 1/T.
            count_every: Number of updates between renewals of the class counts.
        """

        cubes: Annotated[int, Field(ge=2)] = 3
        weight: Annotated[float, Field(ge=0)] = 0.1
        ramp: Share = 1.0
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
        noise: Annotated[float, Field(ge=0)] = 0.1
        labelled: Annotated[int, Field(ge=1)] | None = None
        location: Annotated[float, Field(ge=0)] = 0.1
        hidden: Positive = 4096
        cross: bool = True
        within: bool = True
        blend: bool = True
        blend_from: Share = 0.0015
        temperature: Annotated[float, Field(gt=0)] = 1.0
        count_every: Positive = 20

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`.

        Raises:
            RecipeError: The student cannot segment a cube, or does not name the module of its coarsest features.
        """
        super().__init__(recipe, task)
        student = parse_network_config(recipe.student)
        k = self.config.cubes
        if not student.takes_any_size:
            raise RecipeError(
                f"magicnet segments cubes of the patch, and a {student.kind} takes the patch's size only."
            )
        sides = recipe.size()
        whole = [k * d for d in student.divisor()]
        if any(side % n for side, n in zip(sides, whole, strict=True)) or list(sides) == whole:
            raise RecipeError(
                f"methods.magicnet.cubes: {k} per axis divide a patch of {list(sides)} into cubes that do not suit the "
                f"student; the patch's sides must be multiples of {whole}, and not all equal to them."
            )
        student.module_name("deepest")  # refuses a student without a name for this module

    def build(self) -> Networks:
        """Build the student, its moving average, and the location head, which holds the class counts."""
        student = self.build_student()
        sides = [side // self.config.cubes for side in self.recipe.size()]
        with torch.no_grad(), features_out(student, self._deepest()) as found:
            student.eval()(torch.zeros((1, self.task.inputs, *sides)))
        student.train()
        location = CubeLocationHead(found[0].numel(), self.config.hidden, self.config.cubes**3, self.targets.codes)
        return {"student": student, "teacher": freeze(copy.deepcopy(student)), "location": location}

    def step_plan(self, step: int) -> StepPlan:
        """Train the student and the location head in every step."""
        rate = self.student_rate(step)
        composition = self.composition(self.config.labelled)
        rates = {"student": rate, **({"location": rate} if self.config.within else {})}
        return StepPlan("train", rates, composition, step)

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """Set all networks to train mode, as released."""
        for network in networks.values():
            network.train()

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the terms of the class's docstring."""
        student, k, n = networks["student"], self.config.cubes, batch.labelled
        terms: dict[str, Tensor] = {}
        crossed = within = None
        if self.config.cross:
            orders = draw_orders(k**3, len(batch))
            crossed = unmix_cubes(student(mix_cubes(batch.images, orders, k)), orders, k)
        if self.config.within:
            within, terms["location"] = self.read_cubes(networks, batch.images)
        zero = batch.images.sum() * 0.0
        target = self.targets.encode(batch.labels[:n])
        # A part may hold no labelled patch. Guidance needs the logits of the unlabelled ones, too.
        logits = student(batch.images if self.guided else batch.images[: max(n, 1)])[:n]
        weights = batch.label_weights
        parts = [
            weighted_mean(self.targets.cross_entropy(logits, target), weights),
            self._dice(logits, target, weights),
        ]
        parts += [self._dice(branch[:n], target, weights) for branch in (crossed, within) if branch is not None]
        terms["supervised"] = (
            torch.stack(parts).sum() / 4.0 * share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        )
        if crossed is not None and step_plan.composition.unlabelled:
            pseudo = self.pseudo_labels(networks, batch.images[n:], None if within is None else within[n:], step_plan)
            scale = share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
            terms["pseudo"] = self._dice(crossed[n:], self.targets.encode(pseudo)) * scale
        total = (
            terms["supervised"]
            + self.config.location * terms.get("location", zero)
            + self.weight(step_plan.student_update) * terms.get("pseudo", zero)
        )
        return {"total": total, **{name: value.detach() for name, value in terms.items()}}

    def read_cubes(self, networks: Networks, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment each cube by itself; return logits of the whole patches and the loss of the cubes' positions."""
        k = self.config.cubes
        cubes = to_cubes(images, k)
        positions, n = cubes.shape[:2]
        place = torch.arange(positions, device=images.device).repeat_interleave(n)
        order = torch.randperm(positions * n).to(images.device)
        with features_out(networks["student"], self._deepest()) as found:
            logits = networks["student"](cubes.flatten(0, 1)[order])
        location = functional.cross_entropy(networks["location"](found[0].flatten(1)).float(), place[order])
        back = logits[order.argsort()]
        return from_cubes(back.reshape(positions, n, *back.shape[1:]), k), location

    @torch.no_grad()
    def pseudo_labels(self, networks: Networks, images: Tensor, within: Tensor | None, step_plan: StepPlan) -> Tensor:
        """Return decisions (N, X, Y, Z) on (1 - Omega) p_teacher + Omega p_within.

        Omega is the count of a voxel's class over the largest count, so that rare classes follow the teacher.
        """
        noise = bounded_noise(images, self.config.noise)
        p = self.targets.probabilities(networks["teacher"](images + noise))
        decided = self.targets.decide(p)
        location = networks["location"]
        assert isinstance(location, CubeLocationHead)
        late = step_plan.student_update > self.config.blend_from * self.recipe.updates
        if self.config.blend and within is not None and late and bool(location.counted.sum() > 0):
            omega = location.class_weights(self.config.temperature)[decided][:, None]
            decided = self.targets.decide((1.0 - omega) * p + omega * self.targets.probabilities(within))
        location.add_counts(torch.bincount(decided.flatten(), minlength=self.targets.codes))
        return decided

    def after_update(self, networks: Networks, step_plan: StepPlan) -> None:
        """Update the teacher, and renew the class counts every ``count_every`` updates."""
        decay = ema_decay(step_plan.student_update, self.config.decay)
        update_moving_average(networks["teacher"], networks["student"], decay, buffers=False)
        location = networks["location"]
        assert isinstance(location, CubeLocationHead)
        if (step_plan.student_update + 1) % self.config.count_every == 0:
            location.apply_counts()

    def _dice(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        return dice_pooled(self.targets.probabilities(logits), target, weights)

    def _deepest(self) -> str:
        return parse_network_config(self.recipe.student).module_name("deepest")


class CubeLocationHead(nn.Module):
    """A classifier of a cube's position in the patch from its features; it also holds the class counts."""

    seen: Tensor
    counted: Tensor

    def __init__(self, features: int, hidden: int, places: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, places)
        )
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("counted", torch.zeros(classes, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """(N, features) -> logits over the positions."""
        out: Tensor = self.layers(features)
        return out

    def add_counts(self, counts: Tensor) -> None:
        """Add to the counts since the last renewal."""
        self.seen += sum_over_processes(counts.double())

    def apply_counts(self) -> None:
        """Use the counts since the last renewal as the class counts, and start counting again."""
        if bool(self.seen.sum() > 0):
            self.counted.copy_(self.seen)
            self.seen.zero_()

    def class_weights(self, temperature: float) -> Tensor:
        """Return R (classes,): count^(1/T) over its largest value, 0..1."""
        powered = self.counted.pow(1.0 / temperature)
        return (powered / powered.max()).float()
