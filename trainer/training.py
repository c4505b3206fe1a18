"""Training from Python: a dataset folder and a recipe become a run folder, as with `semiseg train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.bundle.manifest import Manifest
from semiseg.dataset import Dataset, Split, load_dataset, make_split
from trainer.checkpoints import RunFolder, read_training_record
from trainer.errors import RecipeError
from trainer.loop import MessageCallback, StepCallback, train
from trainer.plan import ProgressCallback
from trainer.recipe import Recipe
from trainer.recipe_files import find_recipe, read_document
from trainer.recipe_planning import PlannedRecipe, PlanningContext
from trainer.recipe_rules import RecipeDecision
from trainer.time_estimate import TimeEstimate, parse_duration


@dataclass(frozen=True)
class PreparedTraining:
    """A training whose recipe is decided and that has not begun; made by :func:`prepare_training`.

    Attributes:
        run: Folder of the run.
        resume: If True, the run continues from its last checkpoint.
    """

    run: Path
    resume: bool
    _context: PlanningContext
    _planned: PlannedRecipe

    @property
    def dataset(self) -> Dataset:
        """The dataset."""
        return self._context.dataset

    @property
    def split(self) -> Split:
        """Labelled, unlabelled, validation and test scans."""
        return self._context.split

    @property
    def recipe(self) -> Recipe:
        """The recipe without open keys."""
        return self._planned.recipe

    @property
    def decisions(self) -> tuple[RecipeDecision, ...]:
        """Decisions on keys that the recipe left open, with their reasons."""
        return self._planned.decisions

    def estimate_time(self) -> list[TimeEstimate]:
        """Estimate the time of each part of the run on this machine, from a few steps of each."""
        return self._context.estimate_time(self.recipe, self._planned.scans)

    def train(self, report: StepCallback | None = None, tell: MessageCallback | None = None) -> Manifest:
        """Train, and write the run folder.

        Args:
            report: Called after each step with (step, steps, logged values).
            tell: Called with messages for the user.

        Raises:
            RecipeError: The recipe does not suit the dataset or the method.
            RunError: The folder contains another run, or its checkpoint is damaged.
            TrainingError: The loss is not finite; the message names the scans of the batch.
        """
        context = self._context
        return train(
            context.plan(self.recipe, self._planned.scans),
            self.run,
            resume=self.resume,
            cache=context.cache,
            device=context.device,
            report=report,
            watch=context.watch,
            tell=tell,
            decisions=self.decisions,
        )


def prepare_training(
    data: Path | str,
    run: Path | str,
    *,
    recipe: str = "default",
    method: str | None = None,
    changes: Sequence[str] = (),
    labelled: int | None = None,
    split: Path | None = None,
    budget: str | None = None,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    watch: ProgressCallback | None = None,
) -> PreparedTraining:
    """Read a dataset and a recipe, and decide what the recipe leaves open; training does not begin.

    The settings of the method are checked by :meth:`PreparedTraining.train` and
    :meth:`PreparedTraining.estimate_time`.

    Args:
        data: Dataset folder in the format of the Medical Segmentation Decathlon.
        run: Folder of the run.
        recipe: File of a recipe, or the name of one that comes with semiseg.
        method: Training method; by default that of the recipe.
        changes: Changes of the recipe, each as ``key=value``, such as ``updates=400`` or ``methods.mn.slices=6``.
        labelled: Number of labelled scans of the split to use; all by default.
        split: Split file; by default ``split.json`` in the dataset folder.
        budget: Time that training may take, such as ``30m``; it decides the number of updates.
        resume: If True, the decisions of the run in the folder are used, and training continues from its checkpoint.
        cache: Folder of the preprocessed scans, by default inside ``run``; runs on the same dataset may share it.
        device: ``cpu`` or ``cuda``; by default a GPU if there is one.
        watch: Called with (activity, done, total) while scans are read and preprocessed.

    Raises:
        DatasetError: The dataset folder or the split is invalid.
        RecipeError: The recipe is invalid, or the budget is too small.
    """
    run = Path(run)
    document = read_document(find_recipe(recipe), [*changes, *([f"method={method}"] if method else [])])
    seconds = None if budget is None else parse_duration(budget)
    if seconds is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError("Several processes would time themselves differently; set `updates` and give no budget.")
    dataset = load_dataset(Path(data))
    parts = make_split(dataset, split, labelled)
    folder = RunFolder(run)
    earlier = read_training_record(run)["recipe"] if resume and folder.has_begun else None
    context = PlanningContext(dataset, parts, cache or folder.cache, device, watch)
    return PreparedTraining(run, resume, context, context.decide(document, earlier, seconds))
