"""M&N's 2D network alone, trained on the slices of the labelled scans and evaluated on volumes.

Yeung et al., "Learning from 2D natural images for semi-supervised 3D medical image segmentation" (M&N), 2025: the rows
of its first table with a single network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.methods.method import Networks, SegmentationTask, StepPlan, share_of_part
from trainer.methods.mn import MN
from trainer.methods.unsupported_keys import reject_deep_supervision, reject_initial_run
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.slicewise import SlicewiseNetwork
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Optimiser, Recipe, Section
from trainer.schedules import rate_factor
from trainer.teachers import TeacherConfig


class MN2D(MN):
    """L = KL(label || prediction) + Dice(prediction, label) on slices; the 2D network is kept."""

    name = "mn_2d"

    class Config(Section):
        """No settings of its own: those of ``methods.mn`` apply.

        They are ``teacher``, ``teacher_optimiser``, ``slices``, ``chunk``, ``loss`` and the weights of its two terms.
        The recipe's ``schedule`` applies; ``student`` is not used.
        """

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`.

        Raises:
            RecipeError: The recipe has keys that apply to 3D students only.
        """
        super(MN, self).__init__(recipe, task)  # without MN's check of the epochs, which it does not have
        reject_deep_supervision(self, "trains a 2D network, whose decoder's levels it does not read")
        reject_initial_run(self, "methods.mn.teacher.weights")

    @classmethod
    def read_config(cls, recipe: Recipe) -> Section:
        """Validate and return the settings of ``methods.mn``; ``methods.mn_2d`` has none of its own."""
        super().read_config(recipe)
        return MN.read_config(recipe)

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`."""
        super().check_parts(processes)
        if self.guided:
            self.require_in_each_part(self.composition(None), processes, labelled=1, unlabelled=0)

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """Return the configuration of the 2D network on volumes."""
        switches: Any = cls.read_config(recipe)
        network = switches.teacher.model_copy(update={"weights": None})  # used only to find patch sizes that suit it
        return (parse_network_config({"kind": "sliced", "network": network.model_dump(mode="json")}),)

    def build(self) -> Networks:
        """Build the 2D network as a network for volumes."""
        return {"student": self.as_volume_network(self.build_2d())}

    @property
    def steps(self) -> int:
        """Number of the recipe's updates."""
        return self.recipe.updates

    def step_plan(self, step: int) -> StepPlan:
        """Train on labelled patches in every step.

        If an earlier stage guides this one, half of the batch is unlabelled patches.
        """
        composition = self.composition(None) if self.guided else BatchComposition(self.recipe.batch, 0)
        factor = rate_factor(self.recipe.schedule, step, self.recipe.updates)
        return StepPlan("train", {"student": self.optimiser("student").rate * factor}, composition, step)

    def optimiser(self, network: str) -> Optimiser:
        """Return the settings of the 2D network's optimiser."""
        optimiser: Optimiser = self.config.teacher_optimiser
        return optimiser

    def refreshes_foreground(self, step: int) -> bool:
        """Return False: no unlabelled patch is cut."""
        return False

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the labelled loss on slices."""
        sliced = networks["student"]
        assert isinstance(sliced, SlicewiseNetwork)
        n = batch.labelled
        weights = batch.label_weights
        labelled = replace(batch, images=batch.images[:n], labels=batch.labels[:n], weights=weights)
        target = self.targets.encode(labelled.labels)
        scale = share_of_part(n, step_plan.composition.labelled, batch, step_plan)
        total = scale * self.loss_2d(sliced.network, labelled, target, BatchComposition(n, 0))
        return {"total": total, "supervised": torch.detach(total)}

    def exported_config(self) -> AnyNetworkConfig:
        """See :meth:`Method.exported_config`; it names no pretrained weights, which the run's own weights replace."""
        teacher: TeacherConfig = self.config.teacher
        if teacher.weights is not None:
            teacher = teacher.without_weights(self.build_2d())
        section = {"kind": "sliced", "network": teacher.model_dump(mode="json"), "chunk": self.config.chunk}
        return parse_network_config({**section, "axis": self.task.slice_axis})

    def committee(self, networks: Networks) -> Networks:
        """Return the one network."""
        return {"student": networks["student"]}
