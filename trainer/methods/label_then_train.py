"""A first stage without networks and steps that labels the unlabelled scans for the method that follows."""

from __future__ import annotations

from torch import Tensor

from trainer.errors import RecipeError
from trainer.methods.method import Networks, SegmentationTask, StepPlan
from trainer.methods.pretrain_then_train import PretrainThenTrain
from trainer.patches import Batch
from trainer.recipe import Recipe


class LabelThenTrain(PretrainThenTrain):
    """A stage whose :meth:`Method.scan_labeller` labels the scans once, before the first step of the host."""

    next_method_key = "host"
    guides = True

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`PretrainThenTrain`.

        Raises:
            RecipeError: There are no unlabelled scans.
        """
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError(f"{self.name} labels unlabelled scans, and the split has none; train with `supervised`.")

    def build(self) -> Networks:
        """Return no network."""
        return {}

    @property
    def steps(self) -> int:
        """Number of steps: 0."""
        return 0

    def step_plan(self, step: int) -> StepPlan:
        """Raise IndexError: the stage has no steps."""
        raise IndexError(step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Raise IndexError: the stage has no steps."""
        raise IndexError(batch.step)

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Return True once, before the first step of the host."""
        return step == 0

    def committee(self, networks: Networks) -> Networks:
        """Return no network."""
        return {}
