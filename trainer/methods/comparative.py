"""Comparative and contrastive pre-training: the student first learns, without labels, to compare slices.

Slices from one position of the body become more similar than slices from two positions; then another method trains the
student. "Comparative unsupervised pre-training" (2025); equation numbers are that paper's. Both objectives use one
matrix of similarities (trainer/slice_similarity.py), so that their steps take about the same time.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.errors import RecipeError, TrainingError
from trainer.methods.method import Networks, SegmentationTask, StepPlan
from trainer.methods.pretrain_then_train import PretrainThenTrain
from trainer.methods.registry import MethodName
from trainer.methods.self_training import SelfTraining
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.features import features_out
from trainer.networks.training_wrapper import unwrap_network
from trainer.parallel import sum_over_processes
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Positive, Recipe, Section, Share
from trainer.slice_similarity import (
    SliceFeatures,
    comparative_loss,
    contrastive_loss,
    slice_positions_in_body,
    slice_positions_in_patch,
    take_slices,
)

EMPTY_LOOKS = 20  # first checks without anything to compare, after which the patches count as too small


class Comparative(PretrainThenTrain):
    """Pre-training by Eq. 2 on features of the encoder, then on the logits, before the method that ``then`` names."""

    name = "comparative"
    next_method_key = "then"
    uses = ("student",)

    class Config(Section):
        """The paper's settings, with a choice where its text and its code differ.

        Attributes:
            then: Method that follows; its settings stand under its own name.
            feature_updates: Largest number of steps on the features that the student calls ``compared``; 0 skips them.
            output_updates: Largest number of steps on the logits.
            least_updates: Smallest number of steps of each stage, unless its largest number is smaller.
            look_every: Number of steps between two checks of convergence.
            window: Number of earlier checks with which a check is compared.
            converged: Share within which a stage's loss has to be of the mean of the ``window`` checks before, so that
                the stage ends; the loss is the mean over the terms of ``look_every`` steps. With 0 no stage ends early.
            rate: Constant learning rate of both stages; None takes the recipe's.
            volumes, crops: Number of scans per step, and of patches from each.
            partitions: Number of equal parts along an axis.
            positions: Extent that is divided into parts: the ``body`` (the scan's extent), or, as released, the
                ``patch``, regardless of its position in the scan.
            temperature: Divisor of the cosines: 0.1 as released; the paper has none, which is 1.
            triplets: Triplets that are compared: of ``all`` patches, as released, including two crops of one scan; or,
                as Eq. 2 is printed, similar slices from two scans and the dissimilar slice from the ``same_scan`` as
                the reference.
            denominator: Denominator of Eq. 3: as ``printed``, over the other parts of the reference's scan, or as
                ``released``, over the dissimilar slices of all references.
            reduction: Reduction of the terms of a step: ``mean``; or ``sum``, as in Eq. 2 and 3, which grows with the
                number of terms, and with it the gradient (a norm of several thousand at the first step). This number
                depends on the patches.
            axes: Axes that are sliced: one after another, step by step (``cycle``); all in each step (``together``); or
                one for a whole pass over the scans, as released (``passes``).
            space: Outputs that the second stage compares: ``logits``, as released, or ``probabilities``.
            freeze_encoder: If True, the encoder is frozen in the second stage, as released; the paper trains all.
        """

        then: MethodName = "supervised"
        feature_updates: Annotated[int, Field(ge=0)] = 10000
        output_updates: Annotated[int, Field(ge=0)] = 10000
        least_updates: Annotated[int, Field(ge=0)] = 200
        converged: Share = 0.01
        look_every: Positive = 10
        window: Positive = 10
        rate: Annotated[float, Field(gt=0)] | None = None
        volumes: Positive = 2
        crops: Positive = 2
        partitions: Annotated[int, Field(ge=2)] = 4
        positions: Literal["body", "patch"] = "body"
        temperature: Annotated[float, Field(gt=0)] = 0.1
        triplets: Literal["all", "same_scan"] = "all"
        denominator: Literal["printed", "released"] = "printed"
        reduction: Literal["mean", "sum"] = "mean"
        axes: Literal["cycle", "together", "passes"] = "cycle"
        space: Literal["logits", "probabilities"] = "logits"
        freeze_encoder: bool = True

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`PretrainThenTrain`.

        Raises:
            RecipeError: The student does not name the modules that are needed, or the next method would restart it.
        """
        super().__init__(recipe, task)
        student, switches = parse_network_config(recipe.student), self.config
        if switches.feature_updates:
            student.module_name("compared")
        if isinstance(self.host, SelfTraining) and self.host.config.restart:
            raise RecipeError(
                "methods.self_training.restart: a student that restarts in each round would lose its pre-trained "
                "weights; set it to false."
            )
        if switches.freeze_encoder and switches.output_updates and not student.encoder():
            raise RecipeError(
                f"The student does not name the modules of its encoder, which methods.{self.name} freezes; "
                "name them in `student.encoding`, or set `freeze_encoder: false`."
            )

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; each part needs two patches to compare."""
        super().check_parts(processes)
        patches, parts = self.config.volumes * self.config.crops, processes * self.recipe.accumulate
        if patches < 2 * parts:
            raise RecipeError(
                f"{self.name} compares patches with each other: {patches} (methods.{self.name}.volumes x crops) in "
                f"{parts} part(s) are too few; make it at least {2 * parts}."
            )

    def build(self) -> Networks:
        """Build the convergence monitor; the student is that of the method that follows."""
        if self.config.positions == "patch" and self.config.feature_updates:
            with torch.device("meta"):
                self._require_slices(self.build_student())
        return {"convergence": ConvergenceMonitor(self.config.window, self.config.converged)}

    # --- schedule of the training ---------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Number of steps of both stages."""
        return int(self.config.feature_updates + self.config.output_updates)

    def step_plan(self, step: int) -> StepPlan:
        """Take patches of all training scans at random positions; labels are not used."""
        count, crops = self.config.volumes * self.config.crops, self.config.crops
        rate = self.config.rate or self.recipe.optimiser.rate
        stage = "features" if step < self.config.feature_updates else "output"
        return StepPlan(stage, {"student": rate}, BatchComposition(0, 0, count, crops), 0, validate=False)

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """See :meth:`Method.prepare`; freeze the encoder in the second stage if ``freeze_encoder`` is set."""
        super().prepare(networks, step_plan)
        self._train_encoder(networks["student"], not (step_plan.stage == "output" and self.config.freeze_encoder))

    def hand_over(self, networks: Networks) -> None:
        """Copy the student's weights to the network of the next stage that started as its copy."""
        student = networks["student"]
        self._train_encoder(student, True)
        if "teacher" in networks:
            weights = student.state_dict()
            if networks["teacher"].state_dict().keys() == weights.keys():
                networks["teacher"].load_state_dict(weights)

    def _train_encoder(self, student: nn.Module, trains: bool) -> None:
        for name in self._student.encoder():
            unwrap_network(student).get_submodule(name).requires_grad_(trains)

    def committee(self, networks: Networks) -> Networks:
        """Return no network."""
        return {}

    def fresh_optimisers(self, step: int) -> tuple[str, ...]:
        """Start each objective, and the next stage, without the moments of the objective before."""
        return ("student",) if step in (self.config.feature_updates, self.steps) else ()

    def next_step(self, networks: Networks, step: int) -> int:
        """Continue at the end of an objective that has converged."""
        convergence = networks["convergence"]
        assert isinstance(convergence, ConvergenceMonitor)
        begun, ended = (0, self.config.feature_updates)
        if step > ended:
            begun, ended = ended, self.steps
        if step >= ended:
            if step == ended:
                convergence.clear()
            return step
        if (step - begun) % self.config.look_every:
            return step
        if convergence.has_converged() and step - begun >= self.config.least_updates:
            convergence.clear()
            return int(ended)
        return step

    # --- losses ---------------------------------------------------------------------------------------------------

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the objective on the features or on the output."""
        student = networks["student"]
        if step_plan.stage == "features":
            with features_out(student, self._layer()) as found:
                student(batch.images)
            compared = found[0]
        else:
            compared = student(batch.images)
            if self.config.space == "probabilities":
                compared = self.targets.probabilities(compared)
        with torch.autocast(compared.device.type, enabled=False):
            losses, counts = zip(*map(self.objective, self.slices(compared, batch)), strict=True)
            total = torch.stack(losses).sum()
            total = total + 0.0 * compared.float().sum()  # keeps a gradient where nothing is comparable
            terms = torch.stack(counts).sum()
            convergence = networks["convergence"]
            assert isinstance(convergence, ConvergenceMonitor)
            convergence.add(total, terms)
            if self.config.reduction == "mean":
                top, count = sum_over_processes(torch.stack([total, terms.to(total.dtype)])).unbind()
                total = top / count.clamp_min(1)
        return {"total": total, self.name: total.detach(), "terms": terms.detach()}

    def slices(self, compared: Tensor, batch: Batch) -> list[SliceFeatures]:
        """Return the slices that are compared, for each axis of this step."""
        switches = self.config
        # One offset for all patches and processes: it depends on the step alone.
        random = np.random.default_rng((self.recipe.seed, 8, batch.step))
        names = {case: number for number, case in enumerate(dict.fromkeys(batch.cases))}
        scans = torch.tensor([names[case] for case in batch.cases], device=compared.device)
        out = []
        for axis in self.axes_at(batch.step):
            offset, count = float(random.random()), compared.shape[2 + axis]
            if switches.positions == "patch":
                at = slice_positions_in_patch(count, switches.partitions, len(compared), offset).to(compared.device)
            else:
                assert batch.where is not None, "the loop's batches say where their patches lie"
                at = slice_positions_in_body(
                    batch.where[:, axis].to(compared.device), count, switches.partitions, offset
                )
            out.append(take_slices(compared, axis, at, scans))
        return out

    def _require_slices(self, student: nn.Module) -> None:
        """Refuse features that are too coarse to be divided into parts, before training starts."""
        shape = torch.zeros((1, self.task.inputs, *self.recipe.size()), device="meta")
        with torch.no_grad(), features_out(copy := deepcopy(student).to("meta"), self._layer()) as found:
            copy(shape)
        parts = self.config.partitions
        for axis, count in enumerate(found[0].shape[2:]):
            if count < parts:
                raise RecipeError(
                    f"methods.{self.name}.partitions: the {count} slices of the compared features along axis {axis} do "
                    f"not make {parts} parts; take fewer, or `positions: body`."
                )

    def axes_at(self, step: int) -> tuple[int, ...]:
        """Return the axes along which patches are sliced in ``step``."""
        if self.config.axes == "together":
            return (0, 1, 2)
        if self.config.axes == "cycle":
            return (step % 3,)
        scans = self.task.unlabelled + self.task.labelled
        return (step // -(-scans // self.config.volumes) % 3,)

    def objective(self, slices: SliceFeatures) -> tuple[Tensor, Tensor]:
        """Return the sum of Eq. 2 and its number of terms."""
        similarity = slices.similarity(self.config.temperature)
        triplets = slices.triplets(self.config.triplets)
        return comparative_loss(similarity, triplets), triplets.sum()

    def _layer(self) -> str:
        return self._student.module_name("compared")

    @property
    def _student(self) -> AnyNetworkConfig:
        return parse_network_config(self.recipe.student)


class Contrastive(Comparative):
    """The paper's baseline, with Eq. 3 in place of Eq. 2."""

    name = "contrastive"

    def objective(self, slices: SliceFeatures) -> tuple[Tensor, Tensor]:
        """Return the sum of Eq. 3 and its number of terms: one for each pair, or, as released, for each triplet."""
        similarity = slices.similarity(self.config.temperature)
        if self.config.denominator == "released":
            triplets = slices.triplets("all")
            return contrastive_loss(similarity, triplets, released=True), triplets.sum()
        triplets = slices.triplets(self.config.triplets) & slices.same_scan()[:, None, :]
        return contrastive_loss(similarity, triplets, released=False), triplets.any(dim=2).sum()


class ConvergenceMonitor(nn.Module):
    """The last losses of a stage, in buffers, so that a resumed run has them, too."""

    recent: Tensor
    seen: Tensor
    running: Tensor

    def __init__(self, window: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("recent", torch.zeros(window, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("running", torch.zeros(2, dtype=torch.float64))  # sum of the loss, its terms

    def add(self, loss: Tensor, terms: Tensor) -> None:
        """Add a loss that is a sum of ``terms`` terms, from each of the processes."""
        self.running += sum_over_processes(torch.stack([loss.detach().double(), terms.double()]))

    def has_converged(self) -> bool:
        """Compare the mean loss since the last check with the mean of the checks before, then add it to them.

        Returns:
            True if the two are within the share ``share`` of each other.

        Raises:
            TrainingError: The first :data:`EMPTY_LOOKS` checks had nothing to compare.
        """
        window = len(self.recent)
        total, count = self.running.tolist()
        self.running.zero_()
        self.seen += 1
        if not count:
            if int(self.seen) == EMPTY_LOOKS and not bool(self.recent.any()):
                raise TrainingError(
                    "No two patches show the same part of the body, so there is nothing to compare: make the patch "
                    "larger, `partitions` larger, or set `positions: patch`."
                )
            return False
        mean, loss = float(self.recent.mean()), total / count
        same = bool(self.recent.all()) and abs(mean - loss) < self.share * abs(mean)
        self.recent.copy_(self.recent.roll(-1))
        self.recent[window - 1] = loss
        return same

    def clear(self) -> None:
        """Forget all losses."""
        for buffer in self.buffers():
            buffer.zero_()
