"""The interface of a method: its networks, the plan of each step, the loss of a batch, and the network that is kept.

Everything else (batches, augmentation, precision, checkpoints, resume, logs) belongs to :mod:`trainer.loop`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ValidationError
from torch import Tensor, nn

from semiseg.bundle.manifest import DistillationTeacher, PretrainedWeights
from semiseg.deprecation import renamed_attributes
from semiseg.errors import validation_message
from trainer.deprecated_names import RenamedMembers
from trainer.errors import RecipeError
from trainer.losses import soft_loss, supervised_loss
from trainer.methods.step_plan import StepPlan as StepPlan
from trainer.methods.step_plan import share_of_part as share_of_part
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.outputs import DeepSupervisionNetwork, MultiOutputNetwork
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Optimiser, Recipe, Section
from trainer.scan_labelling import LabellingWorkload, ScanLabeller, TrainingScans
from trainer.schedules import ramp_up, rate_factor
from trainer.soft_labels import from_bytes
from trainer.targets import Targets

Networks = dict[str, nn.Module]

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, Task="SegmentationTask")


@dataclass(frozen=True)
class SegmentationTask:
    """The facts about a segmentation task that a method needs.

    Attributes:
        inputs: Number of input channels of the student.
        targets: The segments and their encoding as channels.
        slice_axis: Axis along which 2D networks slice a volume.
        labelled: Number of labelled scans that patches come from.
        unlabelled: Number of unlabelled scans that patches come from.
    """

    inputs: int
    targets: Targets
    slice_axis: int
    labelled: int
    unlabelled: int


class Method(RenamedMembers, ABC):
    """Base class of the methods, each of which implements one paper.

    A subclass is one file under ``trainer/methods`` and one line of the registry. A method is one stage of a run, in
    most runs the only one; :meth:`stages` returns all stages of a method that has several. Each stage counts its steps
    from 0.

    Attributes:
        name: Name in a recipe.
        patches_together: Number of patches that the loss combines with one another; they are in one part of a batch.
        uses: Names of networks of other stages that this stage works with.
        guides: True for a stage that adds :meth:`guidance` to the losses of the stages after it.
        guided: True for a stage that an earlier stage guides. Its batches hold unlabelled patches if there are any.
        guided_networks: Names of the networks that learn from guidance.
        views: Names of further views of each patch that the loss compares: ``strong``, and ``stronger``, a second one
            with random changes of its own.
        coarse_outputs: True for a loss that reads coarser logits of the students' decoders (see
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
    former_members: ClassVar[dict[str, str]] = {
        "jump": "next_step",
        "kept": "exported_config",
        "labelling": "labelling_workload",
        "voters": "committee",
    }

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """Read the recipe's settings for this method.

        Raises:
            RecipeError: A setting does not exist, or its value is invalid.
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
        """Validate the settings in ``methods.<name>`` of a recipe.

        Raises:
            RecipeError: A setting does not exist, or its value is invalid.
        """
        try:
            return cls.Config.model_validate(recipe.methods.get(cls.name, {}))
        except ValidationError as error:
            raise RecipeError(f"In the recipe, methods.{cls.name}: {validation_message(error)}.") from None

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """Return the configurations of the 3D networks that see patches; the patch is made to suit all of them."""
        return (parse_network_config(recipe.student),)

    def check_parts(self, processes: int) -> None:
        """Refuse a batch of which a part, in any process, does not hold whole groups of ``patches_together`` patches.

        Args:
            processes: Number of processes that share a batch.

        Raises:
            RecipeError: The batch cannot be divided so.
        """
        parts = processes * self.recipe.accumulate
        if self.recipe.batch % (parts * self.patches_together) and self.patches_together > 1:
            raise RecipeError(
                f"{self.name} combines {self.patches_together} patches at a time: a batch of {self.recipe.batch} in "
                f"{parts} part(s) cannot be divided so; make it a multiple of {parts * self.patches_together}."
            )

    def stages(self) -> tuple[Method, ...]:
        """Return the stages of a run, in the order in which they train."""
        return (self,)

    @abstractmethod
    def build(self) -> Networks:
        """Create the stage's own networks, by name, with the random numbers of the caller's seed.

        The ``student`` of the last stage is the network that the run produces.
        """

    @abstractmethod
    def step_plan(self, step: int) -> StepPlan:
        """Return the plan of ``step``. It is a pure function of the step, so that a resumed run repeats it."""

    @abstractmethod
    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the scalar terms of the loss: ``total`` is minimised, the others are logged."""

    @property
    def steps(self) -> int:
        """Number of steps of the loop for the recipe's number of student updates."""
        return self.recipe.updates

    def after_update(self, networks: Networks, step_plan: StepPlan) -> None:
        """Run after the optimisers' step."""

    def prepare(self, networks: Networks, step_plan: StepPlan) -> None:
        """Set the networks that learn to train mode and the others to evaluation mode."""
        for name, network in networks.items():
            network.train(name in step_plan.rates)

    def optimiser(self, network: str) -> Optimiser:
        """Return the settings of the optimiser of ``network``."""
        return self.recipe.optimiser

    def refreshes_foreground(self, step: int) -> bool:
        """Return True if the student's predictions of the unlabelled scans are renewed before ``step``.

        These predictions only decide where patches are cut.
        """
        return False

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Return True if predictions of the unlabelled scans become this stage's pseudo-labels from ``step`` on.

        They are kept in the run folder, and replace those that the stage made at an earlier step. At the step after
        its last one a stage makes labels for the stages that follow.
        """
        return False

    def labeller(self, networks: Networks, step: int) -> nn.Module | None:
        """Return the module from windows to logits that predicts the pseudo-labels; None stands for the student."""
        return None

    def scan_labeller(self, step: int, scans: TrainingScans) -> ScanLabeller | None:
        """Return a function that labels whole scans in place of a network; None if :meth:`labeller` labels them.

        Args:
            step: The step before which the scans are labelled.
            scans: The training scans.

        Raises:
            RecipeError: The labelled scans do not allow it.
        """
        return None

    def labelling_workload(self) -> LabellingWorkload | None:
        """Return the workload of :meth:`scan_labeller`, for the time estimate; None if a network labels the scans."""
        return None

    def restarts(self, step: int) -> tuple[str, ...]:
        """Return the names of the networks that restart from new random weights before ``step``.

        Predictions that are due before ``step`` are made before the restart.
        """
        return ()

    def fresh_optimisers(self, step: int) -> tuple[str, ...]:
        """Return the names of the networks that continue from ``step`` with a new optimiser, without moments."""
        return ()

    def hand_over(self, networks: Networks) -> None:
        """Run after the last step of this stage if another one follows, with the networks of all stages."""

    def guiding_labels(self, networks: Networks, batch: Batch) -> Tensor:
        """Return this stage's labels for the N unlabelled patches of a later stage's batch.

        They are codes (N, X, Y, Z) or soft labels (N, C + 1, X, Y, Z) of :mod:`trainer.soft_labels`.

        Args:
            networks: The networks of all stages.
            batch: The batch, whose ``guides`` hold the pseudo-labels that were made of whole scans.
        """
        return batch.guides[self.name][batch.labelled :]

    def guidance(self, logits: Tensor, labels: Tensor, batch: Batch, step_plan: StepPlan) -> Tensor:
        """Return (cross-entropy + Dice) / 2 of a later stage's network on unlabelled patches.

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
        """Return the weight of :meth:`guidance` at the student's ``update``."""
        return 1.0

    def next_step(self, networks: Networks, step: int) -> int:
        """Return the step at which to continue after ``step`` steps; a later one ends a stage early."""
        return step

    def exported(self, networks: Networks) -> nn.Module:
        """Return the module that is validated, exported and served: windows (B, C, *window) to logits."""
        return networks["student"]

    def exported_config(self) -> AnyNetworkConfig:
        """Return the configuration of the module that :meth:`exported` returns."""
        return parse_network_config(self.recipe.student)

    def committee(self, networks: Networks) -> Networks:
        """Return modules from windows to logits whose disagreement shows which scans are hard (trainer.suggestion).

        A network and its moving average count as one member: once the learning rate has fallen they are nearly equal.
        """
        return {"student": self.exported(networks)}

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the pretrained weights that training starts from."""
        return ()

    def taught_by(self) -> DistillationTeacher | None:
        """Return the finished network that the student learns from, for the manifest."""
        return None

    def build_student(self) -> nn.Module:
        """Build the recipe's student for this task, with the modules that only its training needs."""
        return self.build_network(parse_network_config(self.recipe.student))

    def build_network(self, section: AnyNetworkConfig) -> nn.Module:
        """Build the network of a configuration for this task, with the modules that only its training needs.

        Raises:
            RecipeError: Deep supervision is requested, or the method reads coarser logits, and the configuration does
                not name the levels of its decoder.
        """
        network = section.build(self.task.inputs, self.targets.channels, self.recipe.size())
        if not (self.recipe.deep_supervision or self.coarse_outputs) or isinstance(network, MultiOutputNetwork):
            return network
        return DeepSupervisionNetwork(network, self.coarser_levels(section), self.targets.channels)

    def coarser_levels(self, section: AnyNetworkConfig) -> tuple[tuple[str, int], ...]:
        """Return the coarser levels of a configuration's decoder (see :meth:`NetworkConfig.decoder`).

        A network with further outputs has none.

        Raises:
            RecipeError: The configuration does not name them.
        """
        if getattr(section, "several_outputs", False):
            return ()
        levels = section.decoder()
        if not levels:
            asked = f"{self.name} reads coarser logits" if self.coarse_outputs else "In the recipe, deep_supervision"
            other = "take another method" if self.coarse_outputs else "leave deep_supervision out"
            raise RecipeError(
                f"{asked}: the student ({section.kind}) does not name the coarser levels of its decoder; {other}, "
                "or take a student with at least three levels."
            )
        return levels

    def require_in_each_part(
        self, composition: BatchComposition, processes: int, *, labelled: int, unlabelled: int
    ) -> None:
        """Refuse a batch of which a part, of a process or of an accumulation step, has too few patches of a kind.

        Args:
            composition: Numbers of patches of each kind in a batch.
            processes: Number of processes that share a batch.
            labelled: Number of labelled patches that the method needs in each part.
            unlabelled: Number of unlabelled patches that the method needs in each part.

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
        """Return w(t), which rises to the setting ``weight`` over the share ``ramp`` of the updates."""
        return float(self.config.weight * ramp_up(update, self.config.ramp * self.recipe.updates))

    def student_rate(self, update: int) -> float:
        """Return the student's learning rate at its ``update`` under the recipe's schedule."""
        return self.recipe.optimiser.rate * rate_factor(self.recipe.schedule, update, self.recipe.updates)

    def composition(self, labelled: int | None) -> BatchComposition:
        """Return a fixed composition: ``labelled`` patches, by default half of the batch, and unlabelled ones.

        Without unlabelled scans all patches are labelled.

        Raises:
            RecipeError: The labelled patches fill the whole batch.
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


def freeze(network: nn.Module) -> nn.Module:
    """Exclude the network's parameters from gradients and return the network."""
    return network.requires_grad_(False)
