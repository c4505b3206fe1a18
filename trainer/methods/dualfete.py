"""DualFete: a student learns from two teachers' labels, and its loss on labelled scans is feedback for the teachers.

Yi et al., "DualFete: Revisiting teacher-student interactions from a feedback perspective for semi-supervised medical
image segmentation", AAAI 2026 (arXiv 2511.09319). The equations are those of the released code; where its default and
its script for the left atrium differ, those of the script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from trainer.cutmix import inner_box, numpy_generator, paste_boxes
from trainer.errors import RecipeError
from trainer.losses import masked_mean, supervised_loss, weighted_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, share_of_part
from trainer.parallel import process_count, sum_over_processes
from trainer.patches import Batch
from trainer.recipe import Recipe, Section, Share

TEACHERS = ("teacher", "second_teacher")
VIEWS = ("strong", "stronger")


class DualFete(Method):
    """Student: L_sup(student(u), y). Teachers: L_sup(labelled) + w(t) L_cross + sum_A f_A NLL_A.

    y is the more certain teacher's decision. A is either the voxels on which the teachers agree or those on which they
    disagree; f_A is the decrease of the student's labelled loss after a step on A alone. L_cross trains each teacher on
    the other one's confident decisions, under strong views and CutMix.
    """

    name = "dualfete"
    views = ("strong", "stronger")

    class Config(Section):
        """The paper's settings.

        Attributes:
            weight: Largest weight w_max of the teachers' consistency.
            ramp: Share of the updates over which w(t) rises.
            threshold: Smallest probability at which a teacher's decision trains the other teacher.
            feedback: Weight of the feedback; with 0 two teachers teach each other.
            attributor: Voxels of the trial step: those of ``agreement``, of ``disagreement``, or ``both``, one after
                the other.
            step: Length of the trial step, as a multiple of the optimiser's rate.
            normalise: If True, each tensor's gradient has length 1 in the trial step (script for the left atrium); if
                False, gradients are not changed (script for the pancreas).
            cutmix: Probability of CutMix in the teachers' strong views.
            labelled: Number of labelled patches per batch; by default half of the batch.
            export: Network that is kept.
        """

        weight: Annotated[float, Field(ge=0)] = 1.0
        ramp: Share = 0.2
        threshold: Share = 0.7
        feedback: Annotated[float, Field(ge=0)] = 1.0
        attributor: Literal["agreement", "disagreement", "both"] = "both"
        step: Annotated[float, Field(gt=0)] = 5.0
        normalise: bool = True
        cutmix: Share = 0.5
        labelled: Annotated[int, Field(ge=1)] | None = None
        export: Literal["student", "teacher", "second_teacher"] = "student"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`; the student learns from unlabelled scans alone.

        Raises:
            RecipeError: There are no unlabelled scans.
        """
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError("dualfete's student learns from unlabelled scans, and there are none; take `supervised`.")

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; each part needs a labelled patch for feedback, and an unlabelled one."""
        super().check_parts(processes)
        if self.task.unlabelled:
            composition = self.composition(self.config.labelled)
            self.require_in_each_part(composition, processes, labelled=1, unlabelled=1)

    def build(self) -> Networks:
        """Build a student and two teachers that differ by their random initial weights; all learn by gradients."""
        return {name: self.build_student() for name in ("student", *TEACHERS)}

    def step_plan(self, step: int) -> StepPlan:
        """Train all networks in every step."""
        rate = self.student_rate(step)
        rates = dict.fromkeys(("student", *TEACHERS), rate)
        return StepPlan("train", rates, self.composition(self.config.labelled), step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the sum of the student's and both teachers' losses; each has gradients in its own network alone."""
        n = batch.labelled
        share = share_of_part(len(batch) - n, step_plan.composition.unlabelled, batch, step_plan)
        with torch.no_grad():
            found = [self.targets.probabilities(networks[name](batch.images[n:])) for name in TEACHERS]
        decided = [self.targets.decide(p) for p in found]
        certain = [self.targets.confidence(p) for p in found]
        first_taken, first_less = certain[0] > certain[1], certain[0] < certain[1]
        taken, less = (first_taken, ~first_taken), (first_less, ~first_less)
        pseudo = torch.where(first_taken, decided[0], decided[1])
        agree = decided[0] == decided[1]
        areas = {"agreement": agree, "disagreement": ~agree}
        # A difference of two losses after a small step needs single precision.
        with torch.autocast(batch.images.device.type, enabled=False):
            logits = networks["student"](batch.images[n:])
            learned = share * supervised_loss(logits, pseudo, self.targets)
            gains = self.feedback(networks["student"], logits, pseudo, areas, batch)
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        terms = {"student": learned, "supervised": torch.zeros_like(learned), "cross": torch.zeros_like(learned)}
        terms["feedback"] = torch.zeros_like(learned)
        for k, (name, view) in enumerate(zip(TEACHERS, VIEWS, strict=True)):
            teacher, strong = networks[name], batch.views[view][n:]
            known = supervised_loss(teacher(batch.images[:n]), batch.labels[:n], self.targets, batch.label_weights)
            terms["supervised"] = terms["supervised"] + scale * known
            likelihood = self.own_decision(teacher(strong))
            # Feedback on agreement goes to the less certain teacher, on disagreement to the one whose label was taken.
            told = {"agreement": agree & less[k], "disagreement": ~agree & taken[k]}
            for area, gain in gains.items():
                terms["feedback"] = terms["feedback"] + gain * masked_mean(likelihood, told[area])
            reliable = (certain[1 - k] >= self.config.threshold).float()
            terms["cross"] = terms["cross"] + share * self.crossed(teacher, strong, decided[1 - k], reliable)
        weights = {"feedback": self.config.feedback * share, "cross": self.weight(step_plan.student_update)}
        total = torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        gained = {f"gain/{area}": gain for area, gain in gains.items()}
        return {"total": total, **{name: value.detach() for name, value in terms.items()}, **gained}

    def own_decision(self, logits: Tensor) -> Tensor:
        """Return -log of the probability (N, X, Y, Z) of a network's own decision."""
        decided = self.targets.decide(self.targets.probabilities(logits.detach()))
        return self.targets.cross_entropy(logits, self.targets.encode(decided))

    def crossed(self, teacher: nn.Module, strong: Tensor, labels: Tensor, reliable: Tensor) -> Tensor:
        """Return (CE + Dice) / 2 of a strong view to the other teacher's labels where these are reliable.

        CutMix pastes a box of each patch into another one; its logits are moved back before they are compared.
        """
        random = numpy_generator()
        if random.random() >= self.config.cutmix:
            return supervised_loss(teacher(strong), labels, self.targets, reliable)
        count = len(strong)
        boxes = [inner_box(strong.shape[2:], random, float(random.beta(4, 4)))] * count
        mirrored = list(range(count))[::-1]  # pasting twice along this order restores the patches
        logits = paste_boxes(teacher(paste_boxes(strong, boxes, mirrored)), boxes, mirrored)
        return supervised_loss(logits, labels, self.targets, reliable)

    def feedback(
        self, student: nn.Module, logits: Tensor, pseudo: Tensor, areas: dict[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return f_A, by which the cross-entropy of the labelled patches falls in a step of the student on area A.

        Args:
            student: The student.
            logits: The student's logits (N, K, X, Y, Z) of the unlabelled patches, with gradients.
            pseudo: Pseudo-labels (N, X, Y, Z) of these patches.
            areas: Masks (N, X, Y, Z) of the voxels of each area, by name.
            batch: The batch.
        """
        if not self.config.feedback:
            return {}
        wanted = [a for a in areas if self.config.attributor in (a, "both")]
        weights = {name: p for name, p in student.named_parameters() if p.requires_grad}
        before = self.known_loss(student, weights, batch)
        gains: dict[str, Tensor] = {}
        for area in wanted:
            loss = supervised_loss(logits, pseudo, self.targets, areas[area].float())
            gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
            moved = self.moved(weights, gradients)
            gains[area] = before - self.known_loss(student, moved, batch)
        return gains

    @torch.no_grad()
    def moved(self, weights: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        """Return the weights after a step along the gradients of all processes."""
        length = self.config.step * self.recipe.optimiser.rate
        out: dict[str, Tensor] = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            step = torch.zeros_like(weight) if gradient is None else sum_over_processes(gradient) / process_count()
            norm = step.norm()
            if self.config.normalise and float(norm) > 0:
                step = step / norm
            out[name] = weight - length * step
        return out

    @torch.no_grad()
    def known_loss(self, student: nn.Module, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean cross-entropy, over the labelled patches of all processes, of a student with ``weights``."""
        n = batch.labelled
        logits = functional_call(student, dict(weights), (batch.images[:n],))
        crossed = self.targets.cross_entropy(logits, self.targets.encode(batch.labels[:n]))
        return weighted_mean(crossed, torch.ones_like(crossed) if batch.label_weights is None else batch.label_weights)

    def committee(self, networks: Networks) -> Networks:
        """Return all three networks."""
        return dict(networks)

    def exported(self, networks: Networks) -> nn.Module:
        """Return the network that the setting ``export`` names."""
        return networks[self.config.export]
