"""The one training loop: it carries any method.

    plan -> prepared scans -> networks -> [ turn -> batch -> loss -> update ] -> run folder

What happens at a step is a function of the recipe and the step; all that is carried from step to step is in
:class:`trainer.checkpoints.State`. A run that was killed at any moment and resumed ends with the same weights, bit for
bit, on the same machine with the same number of threads.

Started by ``torchrun`` or ``accelerate launch``, several processes train as one (see :mod:`trainer.parallel`): each
takes its rows of every batch; the first one writes the run folder, which all must be able to read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from semiseg.bundle.bundle import write_manifest
from semiseg.bundle.manifest import Manifest
from trainer.cases import PreparedCase, encode_prediction, places_of, prepare_cases, segments_without_label
from trainer.checkpoints import RunFolder, State, load_state, load_weights, save_state, save_weights
from trainer.device import make_accelerator, workers
from trainer.engine import TorchEngine, student_of
from trainer.errors import RecipeError, TrainingError
from trainer.log import RunLog, draw_curve
from trainer.methods.method import Networks, Turn
from trainer.optimisers import make_optimiser, step_together
from trainer.parallel import (
    average_buffers,
    average_gradients,
    average_values,
    from_first,
    processes,
    rank,
    same_everywhere,
    wait_for_all,
)
from trainer.patches import Batch, Draws, Mixture, PatchSource, Request, batches
from trainer.plan import Plan, Watch, make_manifest
from trainer.preview import draw_preview
from trainer.pseudo_labels import PseudoLabels
from trainer.start import start_from
from trainer.validation import mean_dice, portray, segmenter_for, validate

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
    accelerator = make_accelerator(plan.recipe, device)
    plan.method.check_parts(processes())
    folder = RunFolder(run)
    if rank() == 0:
        folder.start(plan.identity, resume=resume)
    wait_for_all()
    return _Training(plan, folder, cache or run / "cache", accelerator, report, watch).finish()


class _Training:
    """One run in progress."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        cache: Path,
        accelerator: Accelerator,
        report: Report | None,
        watch: Watch | None,
    ) -> None:
        recipe = plan.recipe
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.plan, self.folder, self.report = plan, folder, report
        self.accelerator = accelerator
        self.cases = self._prepare(cache, watch)
        self.manifest = make_manifest(plan, plan.method)
        self.networks = self._build(recipe.seed)
        self.optimisers = {
            name: make_optimiser(plan.method.optimiser(name), network)
            for name, network in self.networks.items()
            if any(p.requires_grad for p in network.parameters())
        }
        self.draws = Draws(recipe, self.cases, plan.split.labelled, plan.unlabelled)
        self.pseudo_labels = PseudoLabels(folder.path / "pseudo")
        self.pseudo: dict[str, NDArray[np.uint8]] = {}
        self.step = 0
        self.started = time.perf_counter()
        self.best: float | None = None
        self.waited = 0
        if folder.checkpoint.exists():
            self._restore(load_state(folder.checkpoint, torch.device("cpu")))
        self.log: RunLog | None = None
        if rank() == 0:
            write_manifest(folder.manifest, self.manifest)
            self.log = RunLog(folder, self.step)

    def finish(self) -> Manifest:
        """Train from the current step to the last one and write what is kept."""
        try:
            for batch, turn in () if self._stopped() else self._batches():
                started = time.perf_counter()
                values = self._update(batch, turn)
                self.step += 1
                self._tell(turn, values, time.perf_counter() - started)
                self.step = self.plan.method.jump(self.networks, self.step)
                if self._validate_if_due(turn):
                    break
                if self.step % self.plan.recipe.checkpoint_every == 0 and self.step < self.plan.method.steps:
                    self._checkpoint()
            self._checkpoint()
        finally:
            if self.log is not None:
                self.log.close()
        if rank() == 0:
            self._keep()
        wait_for_all()
        return self.manifest

    # --- data -----------------------------------------------------------------------------------------------------

    def _prepare(self, cache: Path, watch: Watch | None) -> dict[str, PreparedCase]:
        plan, split = self.plan, self.plan.split
        progress = None if watch is None else lambda done, total: watch("preparing scans", done, total)
        if rank() > 0:
            wait_for_all()  # the first process fills the cache
        cases = prepare_cases(
            plan.dataset, split.labelled, plan.unlabelled, plan.segments, plan.preprocessing, cache, progress
        )
        if rank() == 0:
            wait_for_all()
        unseen = segments_without_label((cases[i] for i in split.labelled), plan.segments)
        if unseen:
            raise RecipeError(
                f"None of the {len(split.labelled)} labelled scans holds {' or '.join(unseen)}, so no network can "
                "learn it: label a scan that does, or name the segments to learn under `regions` in the recipe."
            )
        return cases

    def _build(self, seed: int) -> Networks:
        """Fresh networks on the device, the same in every process."""
        torch.manual_seed(seed)
        networks = self.plan.method.build()
        if self.plan.recipe.start is not None:
            start_from(self.plan.recipe.start, networks)
        networks = {name: network.to(self.accelerator.device) for name, network in networks.items()}
        same_everywhere(networks.values())
        return networks

    def _batches(self) -> Iterator[tuple[Batch, Turn]]:
        """Every remaining step's batch and turn; before a refresh all batches asked for earlier have been used."""
        method, recipe, preprocessing = self.plan.method, self.plan.recipe, self.plan.preprocessing
        step, device = self.step, self.accelerator.device
        labelled_at = [s for s in range(step) if method.refreshes_pseudo_labels(s)]
        if step < method.steps and labelled_at and not method.refreshes_pseudo_labels(step):
            self.pseudo = self.pseudo_labels.read(labelled_at[-1], self.plan.unlabelled)
        while step < method.steps:
            before = sum((method.turn(s).mixture for s in range(step)), Mixture(0, 0))
            self._refresh(step)
            stop = next((s for s in range(step + 1, method.steps) if self._refreshes(s)), method.steps)
            source = PatchSource(
                recipe, self.cases, preprocessing.slice_axis, preprocessing.padding, self.pseudo, device
            )
            turns = [method.turn(s) for s in range(step, stop)]
            requests = self._requests(step, turns, before)
            made = batches(source, requests, step, workers(recipe, device), device.type == "cuda")
            for batch, turn in zip(made, turns, strict=True):
                yield batch.to(device), turn
                step += 1
                if self.step != step:  # the method has jumped; what was made ahead is of no use
                    step = self.step
                    break

    def _requests(self, step: int, turns: list[Turn], before: Mixture) -> Iterator[list[Request]]:
        """The patches of each step that this process makes: every W-th one of W processes."""
        for s, turn in enumerate(turns, start=step):
            yield self.draws.requests(s, turn.mixture, before)[rank() :: processes()]
            before += turn.mixture

    def _refreshes(self, step: int) -> bool:
        method = self.plan.method
        renewed = method.restarts(step) or method.fresh_optimisers(step)
        return bool(renewed) or method.refreshes_foreground(step) or method.refreshes_pseudo_labels(step)

    def _refresh(self, step: int) -> None:
        """What is renewed before ``step``: predictions first, then the networks that start anew."""
        method = self.plan.method
        if method.refreshes_foreground(step):
            self._refresh_foreground()
        if method.refreshes_pseudo_labels(step):
            self._refresh_pseudo_labels(step)
        for name in method.restarts(step):
            fresh = self._build(_number(self.plan.recipe.seed, 7, step))[name]
            self.networks[name].load_state_dict(fresh.state_dict())
        for name in {*method.restarts(step), *method.fresh_optimisers(step)}:
            self.optimisers[name].state.clear()

    def _refresh_foreground(self) -> None:
        """Predict every unlabelled scan that does not fit into a patch; where it finds foreground, patches are cut."""
        patch = self.plan.recipe.size()
        segmenter = segmenter_for(self.manifest, self._engine())
        for case_id in self.plan.unlabelled:
            case = self.cases[case_id]
            if all(n <= p for n, p in zip(case.shape, patch, strict=True)):
                continue
            found = segmenter.segment_prepared(np.asarray(case.image))
            encoded = encode_prediction(found, self.plan.segments)
            self.draws.foreground[case_id] = places_of(encoded, self.plan.segments)

    def _refresh_pseudo_labels(self, step: int) -> None:
        """Predict every unlabelled scan, each process its share, and take the predictions as labels from now on."""
        labeller = self.plan.method.labeller(self.networks, step)
        device = self.accelerator.device
        segmenter = segmenter_for(self.manifest, TorchEngine(labeller, device) if labeller else self._engine())
        unlabelled = self.plan.unlabelled
        for case_id in unlabelled[rank() :: processes()]:
            found = segmenter.segment_prepared(np.asarray(self.cases[case_id].image))
            self.pseudo_labels.write(step, case_id, encode_prediction(found, self.plan.segments))
        wait_for_all()
        self.pseudo = self.pseudo_labels.read(step, unlabelled)
        for case_id, labels in self.pseudo.items():
            self.draws.foreground[case_id] = places_of(np.asarray(labels), self.plan.segments)

    # --- one update -----------------------------------------------------------------------------------------------

    def _update(self, batch: Batch, turn: Turn) -> dict[str, float]:
        """One optimisation step of the networks whose turn it is."""
        method, recipe = self.plan.method, self.plan.recipe
        # Dropout and noise of a step depend on the step alone.
        torch.manual_seed(_number(recipe.seed, 5, batch.step, *([rank()] if rank() else [])))
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
            loss = losses["total"] * share
            (loss if self.accelerator.scaler is None else self.accelerator.scaler.scale(loss)).backward()
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) * share
        average_gradients([self.networks[name] for name in learners])
        terms = average_values(terms, self.accelerator.device)
        clip = {name: method.optimiser(name).clip_norm for name in learners}
        step_together(learners, {name: self.networks[name] for name in learners}, clip, self.accelerator.scaler)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        method.after_update(self.networks, turn)
        average_buffers(network for network in self.networks.values() if network.training)
        return terms

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
            "stage": turn.label,
            "unlabelled": turn.mixture.total - turn.mixture.labelled,
            "update": turn.student_update,
            "seconds": round(seconds, 4),
            "elapsed": round(time.perf_counter() - self.started, 3),
        }
        due = (self.step - 1) % LOG_EVERY == 0 or self.step == self.plan.method.steps
        if self.log is not None and due:
            self.log.write(self.step - 1, values)
        if self.report is not None:
            self.report(self.step, self.plan.method.steps, values)

    def _validate_if_due(self, turn: Turn) -> bool:
        """With validation scans: measure, keep the best iterate, and say whether to stop early."""
        recipe = self.plan.recipe
        if not self.plan.split.validation or "student" not in turn.rates or not turn.judged:
            return False
        last = self.step == self.plan.method.steps
        if (turn.student_update + 1) % recipe.validate_every and not last:
            return False
        dice = mean_dice(validate(self.manifest, self._engine(), self.plan)) if rank() == 0 else 0.0
        dice = from_first(dice, self.accelerator.device)
        if self.log is not None:
            self.log.write(self.step - 1, {"validation_dice": dice})
        better = self.best is None or dice > self.best
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best = dice
            if rank() == 0:
                save_weights(self.folder.best, self._exported())
            self._checkpoint()
        return self._stopped()

    def _stopped(self) -> bool:
        patience = self.plan.recipe.patience
        return patience is not None and self.waited >= patience

    def _checkpoint(self) -> None:
        if rank() > 0:
            return
        scaler = self.accelerator.scaler
        state = State(
            step=self.step,
            networks={k: v.state_dict() for k, v in self.networks.items()},
            optimisers={k: v.state_dict() for k, v in self.optimisers.items()},
            scaler=None if scaler is None else scaler.state_dict(),
            foreground={k: [torch.from_numpy(p) for p in v] for k, v in self.draws.foreground.items()},
            best=self.best,
            waited=self.waited,
        )
        save_state(self.folder.checkpoint, state)

    def _restore(self, state: State) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state.networks[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state.optimisers[name])
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.draws.foreground = {k: tuple(p.cpu().numpy() for p in v) for k, v in state.foreground.items()}
        self.step, self.best, self.waited = state.step, state.best, state.waited

    def _exported(self) -> nn.Module:
        """A copy of the module that is kept."""
        network = student_of(self.manifest)
        network.load_state_dict(self.plan.method.exported(self.networks).state_dict())
        return network.to(self.accelerator.device).eval()

    def _engine(self) -> TorchEngine:
        return TorchEngine(self._exported(), self.accelerator.device)

    def _keep(self) -> None:
        """Write the exported module, its figures, the curve and the preview; remove what only training needed."""
        network = self._exported()
        if self.best is not None:
            network = load_weights(self.folder.best, network)
        save_weights(self.folder.student, network)
        figures = None
        engine = TorchEngine(network, self.accelerator.device)
        if self.plan.split.validation:
            figures = validate(self.manifest, engine, self.plan)
        masks = portray(self.manifest, engine, self.plan)
        self.manifest = self.manifest.model_copy(update={"validation": figures, "masks": masks})
        write_manifest(self.folder.manifest, self.manifest)
        draw_curve(self.folder, self.folder.path / "curve.png")
        draw_preview(self.manifest, engine, self.plan, self.folder.path / "preview.png")
        self.pseudo_labels.clear()


def _number(*parts: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
