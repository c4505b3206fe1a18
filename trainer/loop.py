"""The one training loop: it carries any method.

    plan -> prepared scans -> networks -> [ turn -> batch -> loss -> update ] -> run folder

What happens at a step is a function of the recipe and the step; all that is carried from step to step is in
:class:`trainer.checkpoints.State`. A run that was killed at any moment and resumed ends with the same weights, bit for
bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from semiseg.bundle.bundle import write_manifest
from semiseg.bundle.manifest import Manifest
from trainer.cases import PreparedCase, as_classes, places_of, prepare_cases
from trainer.checkpoints import RunFolder, State, load_state, load_weights, save_state, save_weights
from trainer.engine import TorchEngine, student_of
from trainer.errors import RecipeError, TrainingError
from trainer.log import RunLog, draw_curve
from trainer.methods.method import Networks, Turn
from trainer.patches import Batch, Draws, Mixture, PatchSource, Request, batches
from trainer.plan import Plan, Watch, make_manifest
from trainer.preview import draw_preview
from trainer.recipe import Optimiser, Recipe
from trainer.validation import mean_dice, segmenter_for, validate

Report = Callable[[int, int, dict[str, Any]], None]
LOG_EVERY = 10


def train(
    plan: Plan,
    run: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    report: Report | None = None,
    watch: Watch | None = None,
) -> Manifest:
    """Train as planned and leave a run folder.

    Args:
        plan: see :func:`trainer.plan.make_plan`.
        run: folder of the run, made here; see :class:`trainer.checkpoints.RunFolder` for what is in it.
        resume: go on from the folder's last checkpoint.
        cache: where preprocessed scans are kept, by default inside ``run``; runs on one dataset may share it.
        device: ``cpu`` or ``cuda``; by default a GPU when there is one.
        report: called after each step with (step, steps, what was logged).
        watch: called while scans are prepared with (what, done, total).

    Raises:
        RunError: the folder holds another run, or its checkpoint is damaged.
        TrainingError: the loss is not finite; the sentence names the scans of the batch.
    """
    folder = RunFolder(run)
    folder.start(plan.identity, resume=resume)
    return _Training(plan, folder, cache or run / "cache", device, report, watch).finish()


class _Training:
    """One run in progress."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        cache: Path,
        device: str | None,
        report: Report | None,
        watch: Watch | None,
    ) -> None:
        recipe = plan.recipe
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.plan, self.folder, self.report = plan, folder, report
        self.cases = self._prepare(cache, watch)
        self.manifest = make_manifest(plan, plan.method)
        write_manifest(folder.manifest, self.manifest)
        self.accelerator = _accelerator(recipe, device)
        torch.manual_seed(recipe.seed)
        self.networks: Networks = {k: self.accelerator.prepare_model(v) for k, v in plan.method.build().items()}
        self.optimisers = {
            name: self.accelerator.prepare_optimizer(make_optimiser(plan.method.optimiser(name), network))
            for name, network in self.networks.items()
            if any(p.requires_grad for p in network.parameters())
        }
        self.draws = Draws(recipe, self.cases, plan.split.labelled, plan.split.unlabelled)
        self.step = 0
        self.best: float | None = None
        if folder.checkpoint.exists():
            self._restore(load_state(folder.checkpoint, self.accelerator.device))
        self.log = RunLog(folder, self.step)

    def finish(self) -> Manifest:
        """Train from the current step to the last one and write what is kept."""
        try:
            for batch, turn in self._batches():
                started = time.perf_counter()
                values = self._update(batch, turn)
                self.step += 1
                self._tell(turn, values, time.perf_counter() - started)
                self._validate_if_due(turn)
                if self.step % self.plan.recipe.checkpoint_every == 0 and self.step < self.plan.method.steps:
                    self._checkpoint()
            self._checkpoint()
        finally:
            self.log.close()
        return self._keep()

    # --- data -----------------------------------------------------------------------------------------------------

    def _prepare(self, cache: Path, watch: Watch | None) -> dict[str, PreparedCase]:
        split = self.plan.split
        progress = None if watch is None else lambda done, total: watch("preparing scans", done, total)
        return prepare_cases(
            self.plan.dataset, split.labelled, split.unlabelled, self.plan.preprocessing, cache, progress
        )

    def _batches(self) -> Iterator[tuple[Batch, Turn]]:
        """Every remaining step's batch and turn; before a refresh all batches asked for earlier have been used."""
        method, recipe = self.plan.method, self.plan.recipe
        source = PatchSource(recipe, self.cases, self.plan.preprocessing.slice_axis, self.plan.preprocessing.padding)
        step = self.step
        before = _drawn(method.turn(s).mixture for s in range(step))
        while step < method.steps:
            if method.refreshes_foreground(step):
                self._refresh_foreground()
            stop = next((s for s in range(step + 1, method.steps) if method.refreshes_foreground(s)), method.steps)
            turns = [method.turn(s) for s in range(step, stop)]
            requests = self._requests(step, turns, before)
            before = _drawn([before, *(turn.mixture for turn in turns)])
            pinned = self.accelerator.device.type == "cuda"
            made = batches(source, requests, step, recipe.workers, pinned)
            for batch, turn in zip(made, turns, strict=True):
                yield batch.to(self.accelerator.device), turn
            step = stop

    def _requests(self, step: int, turns: list[Turn], before: Mixture) -> Iterator[list[Request]]:
        for s, turn in enumerate(turns, start=step):
            yield self.draws.requests(s, turn.mixture, before)
            before = _drawn([before, turn.mixture])

    def _refresh_foreground(self) -> None:
        """Predict every unlabelled scan that does not fit into a patch; where it finds foreground, patches are cut."""
        patch = self.plan.recipe.size()
        segmenter = segmenter_for(self.manifest, self._engine())
        for case_id in self.plan.split.unlabelled:
            case = self.cases[case_id]
            if all(n <= p for n, p in zip(case.shape, patch, strict=True)):
                continue
            labels = segmenter.segment_prepared(np.asarray(case.image))
            classes = as_classes(labels, [s.label for s in self.plan.segments])
            self.draws.foreground[case_id] = places_of(classes, len(self.plan.segments))

    # --- one update -----------------------------------------------------------------------------------------------

    def _update(self, batch: Batch, turn: Turn) -> dict[str, float]:
        """One optimisation step of the networks whose turn it is."""
        method, recipe = self.plan.method, self.plan.recipe
        # Dropout and noise of a step depend on the step alone.
        torch.manual_seed(int(np.random.SeedSequence((recipe.seed, 5, batch.step)).generate_state(1)[0]))
        method.prepare(self.networks, turn)
        learners = {name: self.optimisers[name] for name in turn.rates}
        for name, optimiser in learners.items():
            for group in optimiser.param_groups:
                group["lr"] = turn.rates[name]
        terms: dict[str, float] = {}
        for part in batch.parts(recipe.accumulate):
            with self.accelerator.autocast():
                losses = method.loss(self.networks, part, turn)
            share = len(part) / len(batch)
            self._check_finite(losses["total"], batch)
            self.accelerator.backward(losses["total"] * share)
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) * share
        self._step(learners)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        method.after_update(self.networks, turn)
        return terms

    def _step(self, learners: dict[str, Any]) -> None:
        """Step every learner; with fp16 one scaler serves them all and is updated once, after the last."""
        scaler = self.accelerator.scaler
        for name, optimiser in learners.items():
            if scaler is not None:
                scaler.unscale_(optimiser.optimizer)
            limit = self.plan.method.optimiser(name).clip_norm
            if limit is not None:
                torch.nn.utils.clip_grad_norm_(self.networks[name].parameters(), limit)
        for optimiser in learners.values():
            if scaler is None:
                optimiser.step()
            else:
                scaler.step(optimiser.optimizer)
        if scaler is not None:
            scaler.update()

    def _check_finite(self, total: Tensor, batch: Batch) -> None:
        if not bool(torch.isfinite(total)):
            scans = ", ".join(sorted(set(batch.cases)))
            raise TrainingError(
                f"The loss is not finite at step {batch.step}, on patches of {scans}. Look at these scans with "
                "`semiseg data check`; if they are sound, lower the learning rate or train with `precision: fp32`."
            )

    # --- what is told and kept ------------------------------------------------------------------------------------

    def _tell(self, turn: Turn, terms: dict[str, float], seconds: float) -> None:
        values: dict[str, Any] = {
            **terms,
            **{f"rate/{name}": rate for name, rate in turn.rates.items()},
            "stage": turn.stage,
            "unlabelled": turn.mixture.unlabelled,
            "update": turn.student_update,
            "seconds": round(seconds, 4),
        }
        if (self.step - 1) % LOG_EVERY == 0 or self.step == self.plan.method.steps:
            self.log.write(self.step - 1, values)
        if self.report is not None:
            self.report(self.step, self.plan.method.steps, values)

    def _validate_if_due(self, turn: Turn) -> None:
        """With validation scans: measure, and keep the best iterate."""
        every = self.plan.recipe.validate_every
        if not self.plan.split.validation or "student" not in turn.rates:
            return
        last = self.step == self.plan.method.steps
        if (turn.student_update + 1) % every and not last:
            return
        figures = validate(self.manifest, self._engine(), self.plan)
        dice = mean_dice(figures)
        self.log.write(self.step - 1, {"validation_dice": dice})
        if self.best is None or dice > self.best:
            self.best = dice
            save_weights(self.folder.best, self._exported())
            self._checkpoint()

    def _checkpoint(self) -> None:
        unwrapped = {k: self.accelerator.unwrap_model(v) for k, v in self.networks.items()}
        scaler = self.accelerator.scaler
        state = State(
            step=self.step,
            networks={k: v.state_dict() for k, v in unwrapped.items()},
            optimisers={k: v.state_dict() for k, v in self.optimisers.items()},
            scaler=None if scaler is None else scaler.state_dict(),
            foreground={k: [torch.from_numpy(p) for p in v] for k, v in self.draws.foreground.items()},
            best=self.best,
        )
        save_state(self.folder.checkpoint, state)

    def _restore(self, state: State) -> None:
        for name, network in self.networks.items():
            self.accelerator.unwrap_model(network).load_state_dict(state.networks[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state.optimisers[name])
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.draws.foreground = {k: tuple(p.cpu().numpy() for p in v) for k, v in state.foreground.items()}
        self.step, self.best = state.step, state.best

    def _exported(self) -> nn.Module:
        """A copy of the module that is kept, free of what Accelerate wraps around it, in full precision."""
        plain = {k: self.accelerator.unwrap_model(v) for k, v in self.networks.items()}
        network = student_of(self.manifest)
        network.load_state_dict(self.plan.method.exported(plain).state_dict())
        return network.to(self.accelerator.device).eval()

    def _engine(self) -> TorchEngine:
        return TorchEngine(self._exported(), self.accelerator.device)

    def _keep(self) -> Manifest:
        """Write the exported module, its figures, the curve and the preview."""
        network = self._exported()
        if self.best is not None:
            network = load_weights(self.folder.best, network)
        save_weights(self.folder.student, network)
        figures = None
        engine = TorchEngine(network, self.accelerator.device)
        if self.plan.split.validation:
            figures = validate(self.manifest, engine, self.plan)
        self.manifest = self.manifest.model_copy(update={"validation": figures})
        write_manifest(self.folder.manifest, self.manifest)
        draw_curve(self.folder, self.folder.path / "curve.png")
        draw_preview(self.manifest, engine, self.plan, self.folder.path / "preview.png")
        return self.manifest


def _accelerator(recipe: Recipe, device: str | None) -> Accelerator:
    if device not in (None, "cpu", "cuda"):
        raise RecipeError(f"There is no device {device!r}; a run is on cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("This machine has no GPU that torch can use; train with --device cpu.")
    # Accelerate keeps the first precision and device of a process; a second run in it may have others.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[recipe.precision]
    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


def make_optimiser(section: Optimiser, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe for the parameters of ``network`` that train."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if section.kind == "sgd":
        return torch.optim.SGD(
            parameters, lr=section.rate, momentum=section.momentum, weight_decay=section.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=section.rate, weight_decay=section.weight_decay)


def _drawn(mixtures: Any) -> Mixture:
    labelled = unlabelled = 0
    for mixture in mixtures:
        labelled += mixture.labelled
        unlabelled += mixture.unlabelled
    return Mixture(labelled, unlabelled)
