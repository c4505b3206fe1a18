"""Dual Networks: two different networks, of which the one that fits the labels better at the moment teaches the other.

"Semi-Supervised Medical Image Segmentation via Dual Networks" (2025); equation numbers are that paper's. Its released
code computes no gradient for two of the four unlabelled terms; here every term has one (see docs/papers.md).
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import RecipeError
from trainer.losses import dice_pooled, masked_mean, weighted_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, share_of_part
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.ensemble import NetworkEnsemble
from trainer.networks.features import features_into
from trainer.networks.training_wrapper import unwrap_network
from trainer.patches import Batch
from trainer.recipe import Recipe, Section, Share
from trainer.schedules import ramp_up
from trainer.targets import ExclusiveClasses

Weight = Annotated[float, Field(ge=0)]


class Dual(Method):
    """L = L_sup + L_semi of both networks, + lambda(t) L_con + L_unc + L_reg of the one that learns from the other."""

    name = "dual"
    guided_networks = ("student", "partner")

    class Config(Section):
        """The paper's ablations, with a choice where its text and its code differ.

        Attributes:
            partner: Second network, as a ``student`` section.
            labelled: Number of labelled patches per batch; by default half of the batch.
            mistake_weight: Weight of the squared error where only one of the two networks is confident. The released
                code has such a term, with 0.5; Eq. 2 has none.
            confident: Smallest probability at which a network is confident of a segment.
            weight_semi: Weight of Eq. 4.
            pseudo_labels: Pseudo-labels of Eq. 4: the decisions of the ``teacher``, as in the text, or the ``union`` of
                both networks' segments, as in the code, which is possible for one segment or overlapping segments.
            keep_quantile: Share of the voxels that count as certain for each network: 0.8 in the text, 0.2 in the code.
            weight_reg: Weight of Eq. 5.
            weight_unc: Weight of Eq. 7.
            uncertainty_on: Patches of Eq. 7: the ``unlabelled`` ones, or, as in the code, ``all``.
            temperature: Temperature of the teacher's sharpened probabilities in Eq. 9. It is for ``soft_targets`` only.
            soft_targets: If True, the learner learns from these probabilities instead of from the decision.
            weight_con: Largest lambda of Eq. 11.
            ramp: Share of the updates over which lambda(t) = weight_con exp(-5 (1 - t/T)^2) rises.
            prototypes: Direction of the term between prototypes: they move ``apart``, as in the text, or ``together``,
                as by the sign in the code.
            teacher: Network that teaches: the one with the smaller labelled Dice loss in the batch (``better``), or
                always the recipe's ``student``.
            export: Network that is kept: the ``mean`` of both networks' probabilities, as in the paper, or one of them.
        """

        partner: dict[str, Any] = Field(default_factory=lambda: {"kind": "resnet_vnet"})
        labelled: Annotated[int, Field(ge=1)] | None = None
        mistake_weight: Weight = 0.0
        confident: Annotated[float, Field(gt=0.5, lt=1)] = 0.6
        weight_semi: Weight = 1.0
        pseudo_labels: Literal["teacher", "union"] = "teacher"
        keep_quantile: Annotated[Share, Field(gt=0)] = 0.8
        weight_reg: Weight = 1.0
        weight_unc: Weight = 1.0
        uncertainty_on: Literal["unlabelled", "all"] = "unlabelled"
        temperature: Annotated[float, Field(gt=0)] = 0.5
        soft_targets: bool = False
        weight_con: Weight = 0.1
        ramp: Share = 1.0
        prototypes: Literal["apart", "together"] = "apart"
        teacher: Literal["better", "student"] = "better"
        export: Literal["mean", "student", "partner"] = "mean"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`.

        Raises:
            RecipeError: A student does not name the module of its last features, or segments have no union.
        """
        super().__init__(recipe, task)
        self._sections = dict(zip(("student", "partner"), self.students(recipe), strict=True))
        if self.config.weight_con:
            for section in self._sections.values():
                section.module_name("features")
        self._exclusive = isinstance(self.targets, ExclusiveClasses)
        if self.config.pseudo_labels == "union" and self._exclusive and self.targets.segments > 1:
            raise RecipeError(
                "methods.dual.pseudo_labels: two exclusive segments have no union in a voxel; take `teacher`."
            )

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; each part needs a labelled patch, on which the networks are compared."""
        super().check_parts(processes)
        labelled, parts = self.composition(self.config.labelled).labelled, processes * self.recipe.accumulate
        if labelled < parts:
            raise RecipeError(
                f"dual compares its networks on labelled patches: {labelled} in {parts} part(s) are too few; make the "
                "batch larger or `accumulate` smaller."
            )

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """Return the configurations of the recipe's student and of its partner."""
        switches: Any = cls.read_config(recipe)
        return parse_network_config(recipe.student), parse_network_config(switches.partner, "methods.dual.partner")

    def build(self) -> Networks:
        """Build both networks, each from its own random initial weights."""
        return {name: self.build_network(section) for name, section in self._sections.items()}

    def step_plan(self, step: int) -> StepPlan:
        """Train both networks in every step."""
        rate = self.student_rate(step)
        return StepPlan("train", dict.fromkeys(self._sections, rate), self.composition(self.config.labelled), step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return all terms; both networks get the batch unchanged."""
        switches, n = self.config, batch.labelled
        logits, features = self._forward(networks, batch.images)
        probabilities = {name: self.targets.probabilities(y) for name, y in logits.items()}
        teacher, learner = self.roles(probabilities, batch)
        on_labelled = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        terms = {"supervised": on_labelled * self.supervised(logits, probabilities, batch)}
        if switches.weight_reg:
            terms["reg"] = switches.weight_reg * self.disagreement(*probabilities.values())
        if switches.weight_unc and (switches.uncertainty_on == "all" or step_plan.composition.unlabelled):
            first, scale = 0, 1.0
            if switches.uncertainty_on == "unlabelled":
                first, scale = n, share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
            unc = self.uncertainty(logits[learner][first:], logits[teacher][first:])
            terms["unc"] = switches.weight_unc * scale * unc
        if step_plan.composition.unlabelled:
            scale = share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
            kept = self.certain(*(p[n:].detach() for p in probabilities.values()))
            decided = {name: self.targets.decide(p[n:].detach()) for name, p in probabilities.items()}
            pseudo = decided[teacher]
            if switches.pseudo_labels == "union":
                pseudo = decided["student"] | decided["partner"]
            if switches.weight_semi:
                terms["semi"] = switches.weight_semi * scale * self.semi(logits, n, pseudo, kept)
            if switches.weight_con:
                con = self.contrast(features[learner][n:], pseudo, kept, decided[learner])
                terms["con"] = self.contrast_weight(step_plan.student_update) * scale * con
        total = torch.stack(list(terms.values())).sum()
        told = {name: value.detach() for name, value in terms.items()}
        return {"total": total, **told, "teacher_is_student": total.new_tensor(float(teacher == "student"))}

    @torch.no_grad()
    def roles(self, probabilities: dict[str, Tensor], batch: Batch) -> tuple[str, str]:
        """Return the names of teacher and learner; the smaller labelled Dice loss teaches, on a tie ``student``."""
        if self.config.teacher == "student":
            return "student", "partner"
        target = self.targets.encode(batch.labels[: batch.labelled])
        dice = [
            float(self._dice(probabilities[name][: batch.labelled], target, batch.label_weights))
            for name in self._sections
        ]
        return ("student", "partner") if dice[0] <= dice[1] else ("partner", "student")

    def supervised(self, logits: dict[str, Tensor], probabilities: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return Eq. 2, CE + Dice of the segments of both networks, and the squared error at likely mistakes."""
        n = batch.labelled
        target = self.targets.encode(batch.labels[:n])
        segments = {name: self.targets.foreground(p[:n]) for name, p in probabilities.items()}
        sure = [p >= self.config.confident for p in segments.values()]
        total = torch.zeros((), device=batch.images.device)
        for name, p in segments.items():
            total = total + weighted_mean(self.targets.cross_entropy(logits[name][:n], target), batch.label_weights)
            total = total + self._dice(probabilities[name][:n], target, batch.label_weights)
            if self.config.mistake_weight:
                errors = (p - self.targets.foreground(target)).pow(2)
                mistakes = sure[0] ^ sure[1]
                if batch.label_weights is not None:
                    mistakes = mistakes & (batch.label_weights > 0)[:, None]
                total = total + self.config.mistake_weight * masked_mean(errors, mistakes)
        return total

    @torch.no_grad()
    def certain(self, *probabilities: Tensor) -> Tensor:
        """Return Eq. 3: the voxels (N, ...) whose entropy is among the ``keep_quantile`` smallest of either network."""
        return torch.stack([self._below_quantile(self.targets.entropy(p)) for p in probabilities]).any(dim=0)

    def semi(self, logits: dict[str, Tensor], first: int, pseudo: Tensor, kept: Tensor) -> Tensor:
        """Return Eq. 4, both networks' cross-entropy to pseudo-labels on certain voxels; zero if there are none."""
        target = self.targets.encode(pseudo)
        return torch.stack(
            [masked_mean(self.targets.cross_entropy(y[first:], target), kept) for y in logits.values()]
        ).sum()

    def disagreement(self, p: Tensor, q: Tensor) -> Tensor:
        """Return Eq. 5 and 6, the mean over voxels of 1 - cos of the two distributions, with gradients in both."""
        return weighted_mean(1.0 - functional.cosine_similarity(self._distributions(p), self._distributions(q), dim=1))

    def uncertainty(self, learner: Tensor, teacher: Tensor) -> Tensor:
        """Return Eq. 7 to 9: mean e^-D CE(learner, y) + mean D, D = KL(teacher || learner); only the learner learns."""
        teacher = teacher.detach()
        p = self.targets.probabilities(teacher)
        apart = self.targets.divergence(learner, p).sum(dim=1) / (1 if self._exclusive else self.targets.segments)
        sharpened = self.targets.probabilities(teacher / self.config.temperature)
        target = sharpened if self.config.soft_targets else self.targets.encode(self.targets.decide(sharpened))
        crossed = self.targets.cross_entropy(learner, target)
        return weighted_mean(torch.exp(-apart) * crossed) + weighted_mean(apart)

    def contrast(self, features: Tensor, pseudo: Tensor, kept: Tensor, own: Tensor) -> Tensor:
        """Return Eq. 10 and 11, which move uncertain voxels' features to the prototype of their class.

        Args:
            features: The learner's features (N, F, ...) of the unlabelled patches.
            pseudo: Pseudo-labels of these patches; those of certain voxels define the prototypes.
            kept: Mask of the certain voxels.
            own: The learner's labels, which assign each uncertain voxel to a prototype.
        """
        rows = features.float().movedim(1, -1).flatten(0, -2)
        apart = self.config.prototypes == "apart"
        if self._exclusive:
            pairs, classes = [(pseudo, own)], self.targets.channels
        else:  # each region against its complement
            bits, classes = range(self.targets.segments), 2
            pairs = [((pseudo >> bit) & 1, (own >> bit) & 1) for bit in bits]
        found = [contrastive(rows, p.flatten(), kept.flatten(), o.flatten(), classes, apart) for p, o in pairs]
        return torch.stack(found).mean()

    def contrast_weight(self, update: int) -> float:
        """Return lambda(t)."""
        return float(self.config.weight_con * ramp_up(update, self.config.ramp * self.recipe.updates))

    def exported(self, networks: Networks) -> nn.Module:
        """Return one of the networks, or the mean of both."""
        if self.config.export != "mean":
            return networks[self.config.export]
        return NetworkEnsemble((unwrap_network(networks[name]) for name in self._sections), regions=not self._exclusive)

    def exported_config(self) -> AnyNetworkConfig:
        """See :meth:`Method.exported_config`."""
        if self.config.export != "mean":
            return self._sections[self.config.export]
        members = [section.model_dump(mode="json") for section in self._sections.values()]
        return parse_network_config({"kind": "mean", "members": members, "regions": not self._exclusive})

    def committee(self, networks: Networks) -> Networks:
        """Return both networks."""
        return {name: networks[name] for name in self._sections}

    def _forward(self, networks: Networks, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the logits of both networks, and the features before their last layer if they are needed."""
        if not self.config.weight_con:
            return {name: networks[name](images) for name in self._sections}, {}
        with ExitStack() as stack:
            found = {
                name: stack.enter_context(features_into(networks[name], s.module_name("features"), images.shape[2:]))
                for name, s in self._sections.items()
            }
            logits = {name: networks[name](images) for name in self._sections}
        return logits, {name: features[0] for name, features in found.items()}

    def _dice(self, probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        return dice_pooled(self.targets.foreground(probabilities), self.targets.foreground(target), weights)

    def _distributions(self, p: Tensor) -> Tensor:
        """Return (N, values, distributions, ...): one distribution over the classes, or one for each region."""
        return p.unsqueeze(2) if self._exclusive else torch.stack([p, 1.0 - p], dim=1)

    def _below_quantile(self, entropy: Tensor) -> Tensor:
        if not entropy.numel():
            return torch.zeros_like(entropy, dtype=torch.bool)
        count = math.ceil(self.config.keep_quantile * entropy.numel())
        return entropy <= entropy.flatten().kthvalue(count).values


def contrastive(features: Tensor, pseudo: Tensor, kept: Tensor, own: Tensor, classes: int, apart: bool) -> Tensor:
    """Return the sum over classes of uncertain voxels' mean distance to their prototype, minus that between prototypes.

    All vectors have length one. The paper draws one in a hundred of the uncertain voxels; all are taken here, which is
    the mean of its draws. The result is zero without two prototypes, or if no uncertain voxel has a prototype.

    Args:
        features: Features (V, F), a row for each voxel.
        pseudo: Class (V,) of each voxel; the mean feature of a class's certain voxels is its prototype.
        kept: Mask (V,) of the certain voxels.
        own: Class (V,) to whose prototype each uncertain voxel is assigned.
        classes: Number of classes.
        apart: If True, the mean distance between prototypes is subtracted, else added.
    """
    with torch.autocast(features.device.type, enabled=False):  # sums over voxels need single precision
        sure = functional.one_hot(pseudo, classes) * kept[:, None]
        counts = sure.sum(dim=0)
        there = counts > 0
        doubtful = functional.one_hot(own, classes) * (~kept & there[own])[:, None]
        if int(there.sum()) < 2 or not bool(doubtful.any()):
            return features.sum() * 0.0
        prototypes = functional.normalize(sure.to(features.dtype).T @ features / counts.clamp_min(1)[:, None], dim=1)
        away = (functional.normalize(features, dim=1) - prototypes[own]).norm(dim=1)
        attraction = (away @ doubtful.to(away.dtype)) / doubtful.sum(dim=0).clamp_min(1)
        between = functional.pdist(prototypes[there]).mean()
        return attraction.sum() - between if apart else attraction.sum() + between
