"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from trainer.errors import RecipeError, TrainingError
from trainer.parallel import processes
from trainer.recipe import Recipe


def make_accelerator(recipe: Recipe, device: str | None) -> Accelerator:
    """Accelerate's view of this process: its device, its precision, and its companions.

    Raises:
        RecipeError: no such device, or a batch that the processes cannot share.
        TrainingError: no GPU that torch can use.
    """
    if device not in (None, "cpu", "cuda"):
        raise RecipeError(f"There is no device {device!r}; a run is on cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("This machine has no GPU that torch can use; train with --device cpu.")
    # Accelerate keeps the first precision and device of a process; a second run in it may have others.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[recipe.precision]
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    if recipe.batch % processes() or recipe.batch // processes() < recipe.accumulate:
        raise RecipeError(
            f"A batch of {recipe.batch} cannot be shared evenly by {processes()} processes in {recipe.accumulate} "
            f"part(s) each; make it a multiple of {processes() * recipe.accumulate}."
        )
    return accelerator
