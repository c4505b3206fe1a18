"""The plan of one step of the loop, and the weights of losses in a part of its batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semiseg.deprecation import RenamedMember, renamed_arguments
from trainer.patches import Batch, BatchComposition


@dataclass(frozen=True)
class StepPlan:
    """One step of the loop: the networks that learn, their learning rates, and the composition of the batch.

    Attributes:
        stage: Name of the stage, for the log.
        rates: Learning rate of each network that learns in this step.
        composition: Numbers of patches of each kind in the batch.
        student_update: Number of updates of the student before this step.
        host: Name of the method whose step it is, if that follows another stage; else empty.
        validate: If False, nothing is validated after this step, because the student does not segment yet.
    """

    stage: str
    rates: dict[str, float]
    composition: BatchComposition
    student_update: int
    host: str = ""
    validate: bool = True
    judged = RenamedMember("validate")

    @property
    def label(self) -> str:
        """Name of the stage in the log."""
        return f"{self.host}-{self.stage}" if self.host else self.stage


if not TYPE_CHECKING:
    StepPlan.__init__ = renamed_arguments(judged="validate")(StepPlan.__init__)


def share_of_part(patches: int, of: int, batch: Batch, step_plan: StepPlan) -> float:
    """Return the weight of a mean over ``patches`` patches, where the whole batch holds ``of`` patches of their kind.

    The loop weights a part of a batch (of a process, or of an accumulation step) by its share of all patches, but a
    mean over the labelled patches alone has to be weighted by their share of all labelled ones. The returned factor
    turns one weight into the other. It is 1 for a whole batch.
    """
    return patches * step_plan.composition.total / (of * len(batch))
