"""What a method is: its networks, what trains when on which batch, the loss of a batch, and what is kept.

Everything else (batches, augmentation, precision, checkpoints, resume, logs) belongs to :mod:`trainer.loop`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.bundle.manifest import DistillationTeacher, PretrainedWeights
from semiseg.errors import validation_message
from trainer.errors import RecipeError
from trainer.losses import soft_loss, supervised_loss
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.outputs import DeepSupervisionNetwork, MultiOutputNetwork
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Optimiser, Recipe, Section
from trainer.scan_labelling import LabellingWorkload, ScanLabeller, TrainingScans
from trainer.schedules import ramp_up, rate_factor
from trainer.soft_labels import from_bytes
from trainer.targets import Targets

Networks = dict[str, nn.Module]


@dataclass(frozen=True)
class SegmentationTask:
    """What is to be segmented, as a method needs to know it.

    ``inputs`` are the student's channels; ``slice_axis`` is where 2D teachers slice; ``labelled`` and ``unlabelled``
    count the scans that patches come from.
    """

    inputs: int
    targets: Targets
    slice_axis: int
    labelled: int
    unlabelled: int


@dataclass(frozen=True)
class StepPlan:
    """One step of the loop: which networks learn, at which rates, and how its batch is composed.

    ``rates`` maps each network that learns in this step to its learning rate. ``student_update`` counts the student's
    own updates before this step. ``host`` names the method inside another one whose step it is. After a step that is
    not ``validate`` (the student does not segment yet) nothing is validated.
    """

    stage: str
    rates: dict[str, float]
    composition: BatchComposition
    student_update: int
    host: str = ""
    validate: bool = True

    @property
    def label(self) -> str:
        """For the log."""
        return f"{self.host}-{self.stage}" if self.host else self.stage


class Method(ABC):
    """One paper. A subclass is one file under ``trainer/methods`` and one line of the registry.

    A method is a stage of a run, mostly the only one; :meth:`stages` names those of a method with several. Steps are
    counted by each stage from 0.

    Attributes:
        name: Name in a recipe.
        patches_together: Number of patches that the loss combines with one another; they are in one part of a batch.
        uses: Names of networks of other stages that this stage works with.
        guides: true for a stage that adds :meth:`guidance` to the losses of the stages after it.
        guided: true for a stage that an earlier one guides: its batches hold unlabelled patches where there are any.
        guided_networks: Names of the networks that learn from guidance.
        views: Names of further views of each patch that the loss compares: ``strong``, and ``stronger``, a second one
            with random changes of its own.
        coarse_outputs: true for a loss that reads coarser logits of the students' decoders (see
            :mod:`trainer.networks.outputs`).
    """

    name: ClassVar[str]
    patches_together: int = 1
    uses: ClassVar[tuple[str, ...]] = ()
    guides: bool = False
    guided: bool = False
    guided_networks: ClassVar[tuple[str, ...]] = ("student",)
    views: ClassVar[tuple[Literal["strong", "stronger"], ...]] = ()
    coarse_outputs: ClassVar[bool] = False
    Config: ClassVar[type[Section]]

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """Read the recipe's switches for this method.

        Raises:
            RecipeError: a switch that does not exist, or a value that does not hold.
        """
        self.recipe = recipe
        self.task = task
        self.targets = task.targets
        self.config: Any = self.read_config(recipe)
        self.check_parts(1)
        if self.coarse_outputs:
            for section in self.students(recipe):
                self.coarser_levels(section)

    @classmethod
    def read_config(cls, recipe: Recipe) -> Section:
        """What ``methods.<name>`` of a recipe says.

        Raises:
            RecipeError: a switch that does not exist, or a value that does not hold.
        """
        try:
            return cls.Config.model_validate(recipe.methods.get(cls.name, {}))
        except ValidationError as error:
            raise RecipeError(f"In the recipe, methods.{cls.name}: {validation_message(error)}.") from None

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """The 3D networks that see patches; the patch is made to suit them all."""
        return (parse_network_config(recipe.student),)

    def check_parts(self, processes: int) -> None:
        """Refuse a batch that does not give every part, in every process, patches that belong together.

        Raises:
            RecipeError: it does not.
        """
        parts = processes * self.recipe.accumulate
        if self.recipe.batch % (parts * self.patches_together) and self.patches_together > 1:
            raise RecipeError(
                f"{self.name} combines {self.patches_together} patches at a time: a batch of {self.recipe.batch} in "
                f"{parts} part(s) does not hold them; make it a multiple of {parts * self.patches_together}."
            )

    def stages(self) -> tuple[Method, ...]:
        """The stages of a run, in the order in which they train."""
        return (self,)

    @abstractmethod
    def build(self) -> Networks:
        """Make the stage's own networks, by name, with the random numbers of the caller's seed.

        The last stage's ``student`` is the network that is trained for.
        """

    @abstractmethod
    def step_plan(self, step: int) -> StepPlan:
        """What happens at ``step``: a pure function, so that a resumed run repeats it."""

    @abstractmethod
    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Scalar terms of the loss; ``total`` is what is minimised, the others are logged."""

    @property
    def steps(self) -> int:
        """Steps of the loop for the recipe's number of student updates."""
        return self.recipe.updates

    def after_update(self, networks: Networks, step_plan: StepPlan) -> None:  # noqa: B027 - most methods have nothing to do
        """Called after the optimisers stepped."""

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """Set the networks that learn to train mode and the others to evaluation mode."""
        for name, network in networks.items():
            network.train(name in step_plan.rates)

    def optimiser(self, network: str) -> Optimiser:
        """How ``network`` learns."""
        return self.recipe.optimiser

    def refreshes_foreground(self, step: int) -> bool:
        """Whether the student's predictions of the unlabelled scans are to be renewed before ``step``.

        They only decide where patches are cut.
        """
        return False

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Whether predictions of the unlabelled scans become this stage's pseudo-labels from ``step`` on.

        They are kept in the run folder, and replace those that the stage made at an earlier step. At the step after
        its last one a stage labels for the stages that follow.
        """
        return False

    def labeller(self, networks: Networks, step: int) -> nn.Module | None:
        """The module from windows to logits whose predictions they are; None stands for the student."""
        return None

    def scan_labeller(self, step: int, scans: TrainingScans) -> ScanLabeller | None:
        """What labels whole scans in place of a network; None where :meth:`labeller` does.

        Args:
            step: The step before which the scans are labelled.
            scans: The training scans.

        Raises:
            RecipeError: The labelled scans do not allow it.
        """
        return None

    def labelling_workload(self) -> LabellingWorkload | None:
        """What :meth:`scan_labeller` would do, so that its time can be told before; None where a network labels."""
        return None

    def restarts(self, step: int) -> tuple[str, ...]:
        """The networks that start anew, from fresh random weights, before ``step`` (after any predictions)."""
        return ()

    def fresh_optimisers(self, step: int) -> tuple[str, ...]:
        """The networks that go on from ``step`` with an optimiser that remembers nothing."""
        return ()

    def hand_over(self, networks: Networks) -> None:  # noqa: B027 - most stages have nothing to do
        """Called with the networks of all stages when this stage has ended and another one follows."""

    def guiding_labels(self, networks: Networks, batch: Batch) -> Tensor:
        """Labels that this stage gives to the N unlabelled patches of a later stage's batch.

        They are codes (N, X, Y, Z) or soft labels (N, C + 1, X, Y, Z) of :mod:`trainer.soft_labels`.

        Args:
            networks: The networks of all stages.
            batch: The batch, whose ``guides`` hold the pseudo-labels that were made of whole scans.
        """
        return batch.guides[self.name][batch.labelled :]

    def guidance(self, logits: Tensor, labels: Tensor, batch: Batch, step_plan: StepPlan) -> Tensor:
        """(Cross-entropy + Dice) / 2 of a later stage's network on unlabelled patches.

        Args:
            logits: Logits (N, C, X, Y, Z) of the unlabelled patches.
            labels: Labels of these patches, from :meth:`guiding_labels`.
            batch: The batch.
            step_plan: The step.
        """
        scale = share_of_part(len(batch) - batch.labelled, step_plan.composition.unlabelled, batch, step_plan)
        if labels.ndim == logits.ndim:
            target, weights = from_bytes(labels)
            return scale * soft_loss(logits, target, self.targets, weights)
        return scale * supervised_loss(logits, labels, self.targets)

    def guidance_weight(self, update: int) -> float:
        """Weight of :meth:`guidance` at the student's ``update``."""
        return 1.0

    def next_step(self, networks: Networks, step: int) -> int:
        """Where to go on after ``step`` steps: further on, when a stage need not last as long as planned."""
        return step

    def exported(self, networks: Networks) -> nn.Module:
        """The one module that is validated, exported and served: windows (B, C, *window) to logits."""
        return networks["student"]

    def exported_config(self) -> AnyNetworkConfig:
        """The section that describes what :meth:`exported` returns."""
        return parse_network_config(self.recipe.student)

    def committee(self, networks: Networks) -> Networks:
        """Modules from windows to logits whose disagreement says which scans are hard (see trainer.suggestion).

        A network and its moving average are one voter: when the learning rate has fallen they are nearly equal.
        """
        return {"student": self.exported(networks)}

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Weights that training starts from."""
        return ()

    def taught_by(self) -> DistillationTeacher | None:
        """The finished network that the student learns from, for the manifest."""
        return None

    def build_student(self) -> nn.Module:
        """The recipe's student for this task, as it is trained."""
        return self.build_network(parse_network_config(self.recipe.student))

    def build_network(self, section: AnyNetworkConfig) -> nn.Module:
        """The network of a section for this task, with what its training needs beside it.

        Raises:
            RecipeError: Deep supervision is asked for, or the method reads coarser logits, and the section does not say
                which levels its decoder has.
        """
        network = section.build(self.task.inputs, self.targets.channels, self.recipe.size())
        if not (self.recipe.deep_supervision or self.coarse_outputs) or isinstance(network, MultiOutputNetwork):
            return network
        return DeepSupervisionNetwork(network, self.coarser_levels(section), self.targets.channels)

    def coarser_levels(self, section: AnyNetworkConfig) -> tuple[tuple[str, int], ...]:
        """The coarser levels of a section's decoder (see :meth:`Student.decoder`); none where it has further outputs.

        Raises:
            RecipeError: The section does not say which they are.
        """
        if getattr(section, "several_outputs", False):
            return ()
        levels = section.decoder()
        if not levels:
            asked = f"{self.name} reads coarser logits" if self.coarse_outputs else "In the recipe, deep_supervision"
            other = "take another method" if self.coarse_outputs else "leave deep_supervision out"
            raise RecipeError(
                f"{asked}: the student ({section.kind}) does not say which coarser levels its decoder has; {other}, "
                "or take a student of at least three levels."
            )
        return levels

    def require_in_each_part(
        self, composition: BatchComposition, processes: int, *, labelled: int, unlabelled: int
    ) -> None:
        """Refuse a batch that leaves a part, of a process or of an accumulation, fewer patches of a kind.

        Args:
            mixture: Patches of a batch.
            processes: Number of processes that share it.
            labelled: Labelled patches that the method needs in each part.
            unlabelled: Unlabelled ones.

        Raises:
            RecipeError: A part has fewer.
        """
        parts = processes * self.recipe.accumulate
        for kind, count, needed in (
            ("labelled", composition.labelled, labelled),
            ("unlabelled", composition.unlabelled, unlabelled),
        ):
            if count < parts * needed:
                raise RecipeError(
                    f"{self.name} needs {needed} {kind} patch(es) in each part of a batch: {count} in {parts} part(s) "
                    "are too few; make the batch larger or `accumulate` smaller."
                )

    def weight(self, update: int) -> float:
        """w(t) of methods with the switches ``weight`` and ``ramp``: it rises to the one over that share of updates."""
        return float(self.config.weight * ramp_up(update, self.config.ramp * self.recipe.updates))

    def student_rate(self, update: int) -> float:
        """The student's learning rate at its ``update`` under the recipe's schedule."""
        return self.recipe.optimiser.rate * rate_factor(self.recipe.schedule, update, self.recipe.updates)

    def composition(self, labelled: int | None) -> BatchComposition:
        """A fixed mixture: ``labelled`` patches (by default half of the batch), the rest unlabelled, if there are any.

        Raises:
            RecipeError: nothing of the batch is left for unlabelled patches.
        """
        batch = self.recipe.batch
        if not self.task.unlabelled:
            return BatchComposition(batch, 0)
        count = labelled or (batch + 1) // 2
        if count >= batch:
            raise RecipeError(
                f"{self.name}: {count} labelled patches leave no place for unlabelled ones in a batch of {batch}; "
                "make the batch larger."
            )
        return BatchComposition(count, batch - count)


def share_of_part(patches: int, of: int, batch: Batch, step_plan: StepPlan) -> float:
    """The weight of a mean over ``patches`` when they are a part of the ``of`` that the whole batch holds.

    The loop weights a part of a batch (of a process, or of an accumulation) by its share of all patches; a mean over
    the labelled ones alone needs their share of the labelled ones. It is 1 for a whole batch.
    """
    return patches * step_plan.composition.total / (of * len(batch))


def freeze(network: nn.Module) -> nn.Module:
    """The network without gradients."""
    return network.requires_grad_(False)
