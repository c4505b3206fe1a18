"""Device and precision of a run, and the number of processes that make its patches."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from semiseg.system.processors import usable_processors
from trainer.errors import RecipeError, TrainingError
from trainer.parallel import local_process_count, process_count
from trainer.recipe import Recipe

# The other processes wait while the first one preprocesses a large dataset or validates.
PROCESS_GROUP_TIMEOUT = timedelta(days=1)
MAX_WORKERS = 8


def check_device(device: str | None) -> None:
    """Refuse a device that does not exist.

    Raises:
        RecipeError: The device is neither ``cpu`` nor ``cuda``.
        TrainingError: There is no GPU that torch can use.
    """
    if device not in (None, "cpu", "cuda"):
        raise RecipeError(f"There is no device {device!r}; name cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("This machine has no GPU that torch can use; use --device cpu.")


def make_accelerator(recipe: Recipe, device: str | None) -> Accelerator:
    """Create Accelerate's object for this process, which knows the device, the precision, and the other processes.

    Raises:
        RecipeError: The device does not exist or does not support the precision, or the processes cannot share the
            batch evenly.
        TrainingError: There is no GPU that torch can use.
    """
    check_device(device)
    # Accelerate keeps the first precision and device of a process, but a second run in it may use others.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[recipe.precision]
    patience = InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT)
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[patience])
    if precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would train in fp32 without a warning.
        raise RecipeError("precision: fp16 needs a GPU. On the CPU, train with `precision: bf16` or `fp32`.")
    if recipe.batch % process_count() or recipe.batch // process_count() < recipe.accumulate:
        raise RecipeError(
            f"A batch of {recipe.batch} cannot be shared evenly by {process_count()} processes in {recipe.accumulate} "
            f"part(s) each; make it a multiple of {process_count() * recipe.accumulate}."
        )
    return accelerator


def labelling_processes(recipe: Recipe) -> int:
    """Return the number of processes that each training process may start to label scans."""
    return max(1, (recipe.threads or usable_processors()) // local_process_count())


def loader_workers(recipe: Recipe, device: torch.device) -> int:
    """Return the number of worker processes that make patches for this process.

    On a CPU, workers would compete with the training for cores. A GPU needs them to stay busy: a patch of 160x160x64
    voxels takes a sixth of a second on one core. The training processes of one machine share its cores.
    """
    if recipe.workers != "auto":
        return recipe.workers
    if device.type == "cpu":
        return 0
    here = local_process_count()
    return max(1, min(MAX_WORKERS, usable_processors() // here - 1))
