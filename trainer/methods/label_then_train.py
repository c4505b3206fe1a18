"""A first stage without networks and steps, which labels the unlabelled scans for the method that follows."""

from __future__ import annotations

from torch import Tensor

from trainer.errors import RecipeError
from trainer.methods.method import Networks, SegmentationTask, StepPlan
from trainer.methods.pretrain_then_train import PretrainThenTrain
from trainer.patches import Batch
from trainer.recipe import Recipe


class LabelThenTrain(PretrainThenTrain):
    """The scans are labelled once, before the first step of the host; :meth:`Method.scan_labeller` says how."""

    next_method_key = "host"
    guides = True

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`PretrainThenTrain`.

        Raises:
            RecipeError: There is nothing to label.
        """
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError(f"{self.name} labels unlabelled scans, and the split has none; train with `supervised`.")

    def build(self) -> Networks:
        """Make no network."""
        return {}

    @property
    def steps(self) -> int:
        """No step."""
        return 0

    def step_plan(self, step: int) -> StepPlan:
        """There is no step to plan."""
        raise IndexError(step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """There is no step with a loss."""
        raise IndexError(batch.step)

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Once, before the first step of the host."""
        return step == 0

    def committee(self, networks: Networks) -> Networks:
        """No network."""
        return {}
