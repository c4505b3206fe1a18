"""Training loop, which is the same for all methods.

    plan -> prepared scans -> networks -> [ batch stream: plan, batch -> model set: loss, update ] -> run folder

Each step is a function of the recipe, the number of the step, and :class:`trainer.checkpoints.TrainingState`. On the
same machine with the same number of threads, a run that was killed and resumed ends with bit-identical weights.

With ``torchrun`` or ``accelerate launch``, several processes train together (see :mod:`trainer.parallel`): each process
takes its rows of every batch. The first process writes the run folder, which all processes must be able to read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from semiseg.bundle.bundle import write_manifest
from semiseg.bundle.manifest import Manifest
from semiseg.inference.segmenter import Segmenter
from trainer.batch_stream import BatchStream, prepare_training_cases
from trainer.cases import PreparedCase
from trainer.checkpoints import RunFolder, TrainingState, load_state, load_weights, save_state, save_weights
from trainer.device import labelling_processes, make_accelerator
from trainer.engine import TorchEngine, load_trained_network
from trainer.log import RunLog, plot_training_curve
from trainer.methods.method import StepPlan
from trainer.model_set import ModelSet
from trainer.parallel import barrier, broadcast_value, process_count, rank
from trainer.plan import ProgressCallback, TrainingPlan, make_manifest, make_plan
from trainer.preview import draw_preview
from trainer.pseudo_labels import PseudoLabels
from trainer.recipe import Recipe
from trainer.recipe_rules import RecipeDecision, write_decisions
from trainer.run_sources import RunSources
from trainer.scan_labelling import TrainingScans
from trainer.validation import make_segmenter, mask_statistics, mean_dice, validate

StepCallback = Callable[[int, int, dict[str, Any]], None]
MessageCallback = Callable[[str], None]
LOG_EVERY = 10


def train(
    plan: TrainingPlan,
    run: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    report: StepCallback | None = None,
    watch: ProgressCallback | None = None,
    tell: MessageCallback | None = None,
    members: Path | None = None,
    decisions: tuple[RecipeDecision, ...] = (),
) -> Manifest:
    """Train according to a plan and write a run folder.

    Args:
        plan: Plan of the run, see :func:`trainer.plan.make_plan`.
        run: Folder of the run, which is created; its files are described in :class:`trainer.checkpoints.RunFolder`.
        resume: If True, continue from the last checkpoint in the folder.
        cache: Folder of the preprocessed scans, by default inside ``run``; runs on the same dataset may share it.
        device: ``cpu`` or ``cuda``; by default a GPU if there is one.
        report: Called after each step with (step, steps, logged values).
        watch: Called with (activity, done, total) while scans are preprocessed.
        tell: Called with messages for the user, which are also written to the run's log.
        decisions: Decisions on keys that the recipe left open, to be written to the run folder.
        members: Folder of the runs of further networks that the method requests, by default inside ``run``.

    Raises:
        RunError: The folder contains another run, or its checkpoint is damaged.
        TrainingError: The loss is not finite; the message names the scans of the batch.
    """
    accelerator = make_accelerator(plan.recipe, device)
    plan.stages.check_parts(process_count())
    folder = RunFolder(run)
    if rank() == 0:
        folder.start(plan.identity, resume=resume)
        if decisions:
            write_decisions(decisions, folder.decisions)
    barrier()
    callbacks = _Callbacks(report, watch or (lambda what, done, total: None), tell or (lambda sentence: None))
    return _Training(plan, folder, cache or folder.cache, members or folder.members, accelerator, callbacks).finish()


@dataclass(frozen=True)
class _Callbacks:
    """Callbacks for the progress of a run; see :func:`train`."""

    report: StepCallback | None
    watch: ProgressCallback
    tell: MessageCallback


class _Training:
    """A run in progress."""

    def __init__(
        self,
        plan: TrainingPlan,
        folder: RunFolder,
        cache: Path,
        members: Path,
        accelerator: Accelerator,
        callbacks: _Callbacks,
    ) -> None:
        recipe = plan.recipe
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.plan, self.folder, self.callbacks = plan, folder, callbacks
        self.cache, self.members = cache, members
        self.accelerator = accelerator
        cases = prepare_training_cases(plan, cache, callbacks.watch)
        self.manifest = make_manifest(plan)
        self.models = ModelSet(plan, self.manifest, accelerator)
        self.pseudo_labels = PseudoLabels(folder.path / "pseudo")
        self.batches = BatchStream(plan, cases, self.pseudo_labels, accelerator.device, self._training_scans)
        self.step = 0
        self.started = time.perf_counter()
        self.best: float | None = None
        self.validations_without_gain = 0
        if folder.checkpoint.exists():
            self._restore(load_state(folder.checkpoint, torch.device("cpu")))
        self.log: RunLog | None = None
        if rank() == 0:
            RunSources.from_cases(plan.dataset.folder, cache, cases).write(folder.path)
            write_manifest(folder.manifest, self.manifest)
            self.log = RunLog(folder, self.step)

    def finish(self) -> Manifest:
        """Train from the current step to the last one and write the results."""
        try:
            while self.step < self.plan.stages.steps and not self._stopped():
                self._train_to_the_next_refresh()
            self._checkpoint()
        finally:
            if self.log is not None:
                self.log.close()
        if rank() == 0:
            self._keep()
        barrier()
        return self.manifest

    def _train_to_the_next_refresh(self) -> None:
        stages = self.plan.stages
        for batch, step_plan in self.batches.until_refresh(self.step, self.models):
            started = time.perf_counter()
            terms = self.models.update(batch, step_plan)
            self.step += 1
            self._tell(step_plan, terms, time.perf_counter() - started)
            self.step = stages.next_step(self.models.networks, self.step)
            if self._validate_if_due(step_plan):
                return
            if self.step % self.plan.recipe.checkpoint_every == 0 and self.step < stages.steps:
                self._checkpoint()
            if self.step != batch.step + 1:  # the method skipped steps, so the batches made ahead cannot be used
                return

    def _training_scans(self, cases: dict[str, PreparedCase]) -> TrainingScans:
        return TrainingScans(
            cases=cases,
            labelled=tuple(self.plan.split.labelled),
            unlabelled=self.plan.unlabelled,
            processes=labelling_processes(self.plan.recipe),
            cache=self.cache,
            train=self._train_member,
            tell=self._say,
            progress=self.callbacks.watch,
        )

    def _train_member(self, recipe: Recipe, name: str, labelled: tuple[str, ...]) -> Segmenter:
        """Train a network that the method requests, or load it if it is trained; see :class:`TrainingScans`."""
        folder = RunFolder(self.members / name)
        split = replace(self.plan.split, labelled=labelled, validation=())
        if not folder.has_ended:
            watch = self.callbacks.watch
            train(
                make_plan(
                    self.plan.dataset, split, recipe, scans=self.plan.scans, preprocessing=self.plan.preprocessing
                ),
                folder.path,
                resume=folder.path.is_dir(),
                cache=self.cache,
                device=self.accelerator.device.type,
                report=lambda step, steps, values: watch(f"training {name}", step, steps),
                watch=watch,
                tell=self._say,
                members=self.members,
            )
        manifest, network = load_trained_network(folder.path)
        return make_segmenter(manifest, TorchEngine(network, self.accelerator.device))

    def _say(self, sentence: str) -> None:
        """Pass a message to the user, and write it to the log."""
        if self.log is not None:
            self.log.write(self.step, {"told": sentence})
        self.callbacks.tell(sentence)

    def _tell(self, step_plan: StepPlan, terms: dict[str, float], seconds: float) -> None:
        values: dict[str, Any] = {
            **terms,
            **{f"rate/{name}": rate for name, rate in step_plan.rates.items()},
            "stage": step_plan.label,
            "unlabelled": step_plan.composition.total - step_plan.composition.labelled,
            "update": step_plan.student_update,
            "seconds": round(seconds, 4),
            "elapsed": round(time.perf_counter() - self.started, 3),
        }
        due = (self.step - 1) % LOG_EVERY == 0 or self.step == self.plan.stages.steps
        if self.log is not None and due:
            self.log.write(self.step - 1, values)
        if self.callbacks.report is not None:
            self.callbacks.report(self.step, self.plan.stages.steps, values)

    def _validate_if_due(self, step_plan: StepPlan) -> bool:
        """Validate if there are validation scans, keep the best weights, and return True to stop early."""
        recipe = self.plan.recipe
        if not self.plan.split.validation or "student" not in step_plan.rates or not step_plan.validate:
            return False
        last = self.step == self.plan.stages.steps
        if (step_plan.student_update + 1) % recipe.validate_every and not last:
            return False
        dice = mean_dice(validate(self.models.segmenter(), self.plan)) if rank() == 0 else 0.0
        dice = broadcast_value(dice, self.accelerator.device)
        if self.log is not None:
            self.log.write(self.step - 1, {"validation_dice": dice})
        better = self.best is None or dice > self.best
        self.validations_without_gain = 0 if better else self.validations_without_gain + 1
        if better:
            self.best = dice
            if rank() == 0:
                save_weights(self.folder.best, self.models.exported())
            self._checkpoint()
        return self._stopped()

    def _stopped(self) -> bool:
        patience = self.plan.recipe.patience
        return patience is not None and self.validations_without_gain >= patience

    def _checkpoint(self) -> None:
        if rank() > 0:
            return
        state = TrainingState(
            step=self.step,
            **self.models.state(),
            foreground={k: [torch.from_numpy(p) for p in v] for k, v in self.batches.foreground.items()},
            best=self.best,
            waited=self.validations_without_gain,
        )
        save_state(self.folder.checkpoint, state)

    def _restore(self, state: TrainingState) -> None:
        self.models.restore(state.networks, state.optimisers, state.scaler)
        foreground = {k: tuple(p.cpu().numpy() for p in v) for k, v in state.foreground.items()}
        self.batches.restore(state.step, foreground)
        self.step, self.best, self.validations_without_gain = state.step, state.best, state.waited

    def _keep(self) -> None:
        """Write the exported module, its figures, the curve and the preview; remove files that only training needs."""
        network = self.models.exported()
        if self.best is not None:
            network = load_weights(self.folder.best, network)
        save_weights(self.folder.student, network)
        segmenter = self.models.segmenter(network)
        figures = validate(segmenter, self.plan) if self.plan.split.validation else None
        masks = mask_statistics(segmenter, self.plan)
        self.manifest = self.manifest.model_copy(update={"validation": figures, "masks": masks})
        write_manifest(self.folder.manifest, self.manifest)
        plot_training_curve(self.folder, self.folder.path / "curve.png")
        draw_preview(segmenter, self.plan, self.folder.preview)
        self.batches.release()
        self.pseudo_labels.clear()
