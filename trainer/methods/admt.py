"""AD-MT: two mean teachers, updated alternately on batches with different perturbations, make joint pseudo-labels.

Zhao et al., "Alternate diverse teaching for semi-supervised medical image segmentation", ECCV 2024.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.cutmix import centred_box, numpy_generator, paste_boxes
from trainer.losses import masked_mean, supervised_loss
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, freeze, share_of_part
from trainer.moving_average import update_moving_average
from trainer.patches import Batch
from trainer.recipe import Positive, Recipe, Section, Share
from trainer.schedules import ema_decay

TEACHERS = ("teacher", "second_teacher")


class ADMT(Method):
    """L = L_sup(labelled) + w(t) mean over confident voxels of CE(student(perturbed patch), pseudo-label).

    The pseudo-label is the decision of (e^(-H_1) p_1 + e^(-H_2) p_2) / (e^(-H_1) + e^(-H_2)), H the entropies in bits
    of the teachers' probabilities. Where the teachers contradict each other, the student's decision is taken if it is
    more certain.
    """

    name = "admt"
    views = ("strong",)

    class Config(Section):
        """The paper's settings.

        Attributes:
            weight: Largest weight w_max of the pseudo-labels.
            ramp: Share of the updates over which w(t) rises.
            threshold: Smallest probability at which a pseudo-label counts.
            period: Largest number of updates for which one teacher is active before the other one; the length of each
                period is drawn from 1 to this number (half an epoch in the released code).
            decay: Limit of the moving averages' decay.
            copied: Share of the updates, at the start, in which the active teacher becomes a copy of the student.
            cutmix: Probability of CutMix while the second teacher is active; the first one uses the strong view.
            conflicts: Decision where the teachers contradict each other: ``certain`` takes the student's label if that
                is more certain than theirs, ``teachers`` always takes theirs.
            mixed: If True, CutMix moves the student's own decisions along with the patch. In the released code it does
                not, so that they are compared with the labels of another position.
            labelled: Number of labelled patches per batch; by default half of the batch.
            export: Network that is kept.
        """

        weight: Annotated[float, Field(ge=0)] = 2.0
        ramp: Share = 0.4
        threshold: Share = 0.8
        period: Positive = 19
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
        copied: Share = 0.005
        cutmix: Share = 1.0
        conflicts: Literal["certain", "teachers"] = "certain"
        mixed: bool = True
        labelled: Annotated[int, Field(ge=1)] | None = None
        export: Literal["student", "teacher", "second_teacher"] = "student"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`."""
        super().__init__(recipe, task)
        random = np.random.default_rng((recipe.seed, 8))
        periods = random.integers(1, self.config.period + 1, size=recipe.updates)
        self._ends = np.cumsum(periods)

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`."""
        super().check_parts(processes)
        if self.task.unlabelled:
            self.require_in_each_part(self.composition(self.config.labelled), processes, labelled=0, unlabelled=1)

    def build(self) -> Networks:
        """Build the student and two moving averages of it."""
        student = self.build_student()
        return {"student": student, **{name: freeze(copy.deepcopy(student)) for name in TEACHERS}}

    def step_plan(self, step: int) -> StepPlan:
        """Train the student in every step; the stage is the name of the active teacher."""
        composition = self.composition(self.config.labelled)
        return StepPlan(self.active(step), {"student": self.student_rate(step)}, composition, step)

    def active(self, step: int) -> str:
        """Return the name of the active teacher; the teachers alternate in periods of random lengths."""
        return TEACHERS[int(np.searchsorted(self._ends, step, side="right")) % 2]

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """Set the student and the active teacher to train mode, as released."""
        for name, network in networks.items():
            network.train(name in ("student", step_plan.stage))

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised term and the cross-entropy to the pseudo-labels of perturbed patches."""
        n = batch.labelled
        logits = networks["student"](batch.images)
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        labels, weights = batch.labels[:n], batch.label_weights
        supervised = scale * supervised_loss(logits[:n], labels, self.targets, weights)
        if not step_plan.composition.unlabelled:
            return {"total": supervised, "supervised": supervised.detach()}
        scale = share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
        pseudo = scale * self.pseudo(networks, batch, logits[n:].detach(), step_plan)
        total = supervised + self.weight(step_plan.student_update) * pseudo
        return {"total": total, "supervised": supervised.detach(), "pseudo": pseudo.detach()}

    def pseudo(self, networks: Networks, batch: Batch, logits: Tensor, step_plan: StepPlan) -> Tensor:
        """Return the cross-entropy on perturbed unlabelled patches.

        Args:
            networks: The networks.
            batch: The batch.
            logits: The student's logits of the unperturbed unlabelled patches.
            step_plan: The step.
        """
        n = batch.labelled
        labels, confidence, conflict = self.ensemble(networks, batch.images[n:])
        q = self.targets.probabilities(logits)
        own, own_confidence = self.targets.decide(q), self.targets.confidence(q)
        if step_plan.stage == TEACHERS[0]:
            seen = batch.views["strong"][n:]
        else:
            seen, moved = self.cut_and_mixed(batch.images[n:], (labels, confidence, conflict, own, own_confidence))
            labels, confidence, conflict = moved[:3]
            if self.config.mixed:
                own, own_confidence = moved[3:]
        if self.config.conflicts == "certain":
            taken = conflict & (own != labels) & (own_confidence > confidence)
            labels = torch.where(taken, own, labels)
            confidence = torch.where(taken, own_confidence, confidence)
        crossed = self.targets.cross_entropy(networks["student"](seen), self.targets.encode(labels))
        return masked_mean(crossed, confidence >= self.config.threshold)

    @torch.no_grad()
    def ensemble(self, networks: Networks, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, their probability, and a mask of the teachers' contradictions, (N, X, Y, Z) each."""
        p, q = (self.targets.probabilities(networks[name](images)) for name in TEACHERS)
        # e^-a / (e^-a + e^-b)
        share = torch.sigmoid(self.targets.ambiguity(q) - self.targets.ambiguity(p))[:, None]
        mean = share * p + (1.0 - share) * q
        conflict = self.targets.decide(p) != self.targets.decide(q)
        return self.targets.decide(mean), self.targets.confidence(mean), conflict

    def cut_and_mixed(self, images: Tensor, along: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return patches with a box of another patch pasted into each, and the values ``along`` pasted likewise."""
        random = numpy_generator()
        if random.random() >= self.config.cutmix:
            return images, along
        share = float(random.beta(4, 4))
        boxes = [centred_box(images.shape[2:], random, share) for _ in range(len(images))]
        sources = random.permutation(len(images)).tolist()
        return paste_boxes(images, boxes, sources), tuple(paste_boxes(values, boxes, sources) for values in along)

    def after_update(self, networks: Networks, step_plan: StepPlan) -> None:
        """Update the active teacher towards the student, buffers too; t counts half of the updates."""
        copied = round(self.config.copied * self.recipe.updates)
        update = step_plan.student_update
        decay = 0.0 if update < copied else ema_decay((update - copied) // 2, self.config.decay)
        update_moving_average(networks[step_plan.stage], networks["student"], decay, buffers=True)

    def exported(self, networks: Networks) -> nn.Module:
        """Return the network that the setting ``export`` names."""
        return networks[self.config.export]
