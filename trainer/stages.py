"""Sequence of the stages of a run, each with its own networks, optimisers and checks.

    fine-tune SAM (steps 0 to a) -> label the unlabelled scans -> train the student (steps a to b)

Most methods have one stage. A method with a preceding phase, such as pre-training, is a stage that names the method
that follows. A stage is queried about its own steps, counted from 0, and about the step after its last one, at which it
may hand over pseudo-labels, fresh optimisers or a student to the next stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from torch import Tensor, nn

from semiseg.bundle.manifest import DistillationTeacher, PretrainedWeights
from trainer.deep_supervision import coarse_logits, deep_supervision_loss
from trainer.methods.method import Method, Networks, StepPlan, share_of_part
from trainer.network_configs import AnyNetworkConfig
from trainer.networks.outputs import further_outputs
from trainer.networks.recorded_calls import RecordedCalls, record_calls
from trainer.networks.training_wrapper import unwrap_network
from trainer.patches import Batch
from trainer.recipe import Optimiser
from trainer.scan_labelling import ScanLabeller, TrainingScans


@dataclass(frozen=True)
class PseudoLabelling:
    """Predictions of the unlabelled scans that become pseudo-labels.

    Attributes:
        source: Name of the stage that makes them.
        network: Module from windows to logits that makes the predictions; None for the student.
        labels_of: Function that labels whole scans in place of a network; None if the stage uses a network.
    """

    source: str
    network: nn.Module | None
    labels_of: ScanLabeller | None = None


class StageSequence:
    """The stages of a method, in the order in which they train.

    Attributes:
        stages: The stages.
        steps: Number of steps of all of them.
    """

    def __init__(self, method: Method) -> None:
        """Create the sequence from the stages of a method."""
        self.stages = method.stages()
        self._owners: dict[str, Method] = {}
        self._firsts: list[int] = []
        self.steps = 0
        for number, stage in enumerate(self.stages):
            stage.guided = any(earlier.guides for earlier in self.stages[:number])
            self._firsts.append(self.steps)
            self.steps += stage.steps

    @property
    def last(self) -> Method:
        """The stage whose student is kept."""
        return self.stages[-1]

    # --- networks -------------------------------------------------------------------------------------------------

    def build(self) -> Networks:
        """Build the networks of all stages, by name, with torch's generator as seeded by the caller.

        The networks of the last stage are built first, so that they do not depend on earlier stages.
        """
        networks: Networks = {}
        for stage in reversed(self.stages):
            made = stage.build()
            if twice := sorted(networks.keys() & made.keys()):
                raise ValueError(f"Two stages build a network named {twice[0]!r}; {stage.name} needs another name.")
            networks |= made
            self._owners |= dict.fromkeys(made, stage)
        return networks

    def optimiser(self, network: str) -> Optimiser:
        """Return the optimiser settings of a network, as defined by the stage that built it."""
        return self._owners[network].optimiser(network)

    def exported(self, networks: Networks) -> nn.Module:
        """See :meth:`Method.exported`."""
        return unwrap_network(self.last.exported(self._seen_by(self.last, networks)))

    def exported_config(self) -> AnyNetworkConfig:
        """See :meth:`Method.exported_config`."""
        return self.last.exported_config()

    def committee(self, networks: Networks) -> Networks:
        """See :meth:`Method.committee`; the committee has the networks of all stages."""
        found: Networks = {}
        for stage in reversed(self.stages):
            found |= stage.committee(self._seen_by(stage, networks))
        return found

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """See :meth:`Method.pretrained`; the result lists the weights of all stages, each once."""
        return tuple(dict.fromkeys(weights for stage in self.stages for weights in stage.pretrained()))

    def taught_by(self) -> DistillationTeacher | None:
        """See :meth:`Method.taught_by`."""
        return next((t for stage in reversed(self.stages) if (t := stage.taught_by()) is not None), None)

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; each stage has its own requirements."""
        for stage in self.stages:
            stage.check_parts(processes)

    # --- what happens before a step -------------------------------------------------------------------------------

    def is_boundary(self, step: int) -> bool:
        """Return True if something is refreshed, reset or handed over before ``step``."""
        asked = list(self._asked(step))
        return len(asked) > 1 or any(
            stage.refreshes_foreground(at)
            or stage.refreshes_pseudo_labels(at)
            or stage.restarts(at)
            or stage.fresh_optimisers(at)
            for stage, at in asked
        )

    def refreshes_foreground(self, step: int) -> bool:
        """See :meth:`Method.refreshes_foreground`."""
        return any(stage.refreshes_foreground(at) for stage, at in self._asked(step))

    def labelling_sources(self, step: int) -> tuple[str, ...]:
        """Return the names of the stages that label the unlabelled scans before ``step``."""
        return tuple(stage.name for stage, at in self._asked(step) if stage.refreshes_pseudo_labels(at))

    def labellings(
        self, networks: Networks, step: int, scans: TrainingScans | None = None
    ) -> Iterator[PseudoLabelling]:
        """Yield the predictions that are made before ``step``.

        Args:
            networks: The networks of all stages.
            step: The step.
            scans: The training scans, for stages that label them without a network.
        """
        for stage, at in self._asked(step):
            if stage.refreshes_pseudo_labels(at):
                labels_of = None if scans is None else stage.scan_labeller(at, scans)
                yield PseudoLabelling(stage.name, stage.labeller(self._seen_by(stage, networks), at), labels_of)

    def restarts(self, step: int) -> tuple[str, ...]:
        """See :meth:`Method.restarts`."""
        return tuple(name for stage, at in self._asked(step) for name in stage.restarts(at))

    def fresh_optimisers(self, step: int) -> tuple[str, ...]:
        """See :meth:`Method.fresh_optimisers`."""
        return tuple(name for stage, at in self._asked(step) for name in stage.fresh_optimisers(at))

    def hand_over(self, networks: Networks, step: int) -> None:
        """Let a stage that ends before ``step`` hand over to the next one."""
        for stage, at in self._asked(step):
            if at == stage.steps and stage is not self.last:
                stage.hand_over(networks)

    # --- a step ---------------------------------------------------------------------------------------------------

    def step_plan(self, step: int) -> StepPlan:
        """See :meth:`Method.step_plan`."""
        stage, at = self.stage_at(step)
        step_plan = stage.step_plan(at)
        return replace(step_plan, host=stage.name) if stage is self.last and len(self.stages) > 1 else step_plan

    def pseudo_label_source(self, step: int) -> str:
        """Return the name of the stage whose pseudo-labels are the labels of the unlabelled patches of ``step``."""
        return self.stage_at(step)[0].name

    def prepare(self, networks: Networks, step_plan: StepPlan, step: int) -> None:
        """See :meth:`Method.prepare`; networks that the stage does not use are set to evaluation mode."""
        stage, _ = self.stage_at(step)
        seen = self._seen_by(stage, networks)
        for name, network in networks.items():
            if name not in seen:
                network.eval()
        stage.prepare(seen, step_plan)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """See :meth:`Method.loss`; earlier stages and deep supervision may add terms to it."""
        stage, _ = self.stage_at(batch.step)
        weight = stage.recipe.deep_supervision
        if not weight or not step_plan.composition.labelled:
            return self._guided_loss(networks, batch, step_plan)
        with ExitStack() as stack:
            heard = {name: stack.enter_context(further_outputs(networks[name])) for name in step_plan.rates}
            losses = self._guided_loss(networks, batch, step_plan)
        for name, calls in heard.items():
            coarse = coarse_logits(calls, batch)
            if coarse:
                scale = share_of_part(batch.labelled, step_plan.composition.labelled, batch, step_plan)
                term = scale * deep_supervision_loss(coarse, batch, stage.targets)
                losses["total"] = losses["total"] + weight * term
                losses["deep" if name == "student" else f"deep/{name}"] = term.detach()
        return losses

    def _guided_loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Compute the stage's loss with the terms of earlier stages (:meth:`Method.guidance`)."""
        stage, _ = self.stage_at(batch.step)
        seen = self._seen_by(stage, networks)
        guides = [earlier for earlier in self.stages[: self.stages.index(stage)] if earlier.guides]
        if not guides or not step_plan.composition.unlabelled:
            return stage.loss(seen, batch, step_plan)
        labels = [guide.guiding_labels(networks, batch) for guide in guides]
        with ExitStack() as stack:
            calls: Mapping[str, RecordedCalls] = {
                name: stack.enter_context(record_calls(networks[name]))
                for name in stage.guided_networks
                if name in step_plan.rates
            }
            losses = stage.loss(seen, batch, step_plan)
        for guide, wanted in zip(guides, labels, strict=True):
            for name, made in calls.items():
                logits = made.logits_for(batch.images, batch.labelled)
                term = guide.guidance(logits, wanted, batch, step_plan)
                losses["total"] = losses["total"] + guide.guidance_weight(step_plan.student_update) * term
                losses[guide.name if name == "student" else f"{guide.name}/{name}"] = term.detach()
        return losses

    def after_update(self, networks: Networks, step_plan: StepPlan, step: int) -> None:
        """See :meth:`Method.after_update`."""
        stage, _ = self.stage_at(step)
        stage.after_update(self._seen_by(stage, networks), step_plan)

    def next_step(self, networks: Networks, step: int) -> int:
        """See :meth:`Method.next_step`."""
        stage, at = self.stage_at(step - 1)
        return step - at - 1 + stage.next_step(self._seen_by(stage, networks), at + 1)

    # --- assignment of steps to stages ----------------------------------------------------------------------------

    def stage_at(self, step: int) -> tuple[Method, int]:
        """Return the stage that ``step`` belongs to, and the number of the step within that stage."""
        for stage, first in zip(self.stages, self._firsts, strict=True):
            if step < first + stage.steps:
                return stage, step - first
        raise IndexError(f"There is no step {step}; there are {self.steps}.")

    def _asked(self, step: int) -> Iterator[tuple[Method, int]]:
        """Yield the stages with ``step`` among their steps or directly after them, with its number in each stage."""
        if step >= self.steps:
            return
        for stage, first in zip(self.stages, self._firsts, strict=True):
            if 0 <= step - first <= stage.steps:
                yield stage, step - first

    def _seen_by(self, stage: Method, networks: Networks) -> Networks:
        """Return the networks that a stage built, and those of other stages that it uses."""
        return {
            name: network
            for name, network in networks.items()
            if self._owners.get(name, stage) is stage or name in stage.uses
        }
