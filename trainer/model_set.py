"""Networks and optimisers of a run, and their updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from semiseg.bundle.manifest import Manifest
from semiseg.inference.segmenter import Segmenter
from trainer.engine import TorchEngine, network_from_manifest
from trainer.errors import TrainingError
from trainer.initial_weights import load_initial_weights
from trainer.memory_format import use_memory_format
from trainer.methods.method import Networks, StepPlan
from trainer.mixed_precision import mixed_precision
from trainer.moving_average import update_moving_average
from trainer.optimisers import make_optimiser, step_optimisers
from trainer.parallel import average_buffers, average_gradients, average_values, broadcast_networks, rank
from trainer.patches import Batch
from trainer.plan import TrainingPlan
from trainer.schedules import ema_decay
from trainer.validation import make_segmenter

EMA_KEY = "moving average"  # name of the average in a checkpoint, which no network of a method has


class ModelSet:
    """Networks of a run with their optimisers, identical in every process.

    Attributes:
        networks: Networks of the method, by name.
        optimisers: Optimisers of the networks with trainable parameters, by name.
        ema: Moving average of the exported network; None if the recipe has no ``ema``.
    """

    def __init__(self, plan: TrainingPlan, manifest: Manifest, accelerator: Accelerator) -> None:
        """Build the networks from the recipe's seed; ``manifest`` describes what is exported."""
        self._plan, self._manifest, self._accelerator = plan, manifest, accelerator
        self.networks = self._build(plan.recipe.seed)
        self.optimisers = {
            name: make_optimiser(plan.stages.optimiser(name), network)
            for name, network in self.networks.items()
            if any(p.requires_grad for p in network.parameters())
        }
        self.ema = None if plan.recipe.ema is None else self._current().requires_grad_(False)

    def _build(self, seed: int) -> Networks:
        torch.manual_seed(seed)
        networks = self._plan.stages.build()
        if self._plan.recipe.init_from is not None:
            load_initial_weights(self._plan.recipe.init_from, networks)
        networks = {name: network.to(self._accelerator.device) for name, network in networks.items()}
        broadcast_networks(networks.values())
        memory_format = self._plan.recipe.memory_format
        return {name: use_memory_format(network, memory_format) for name, network in networks.items()}

    def begin_step(self, step: int) -> None:
        """Prepare for ``step``: let finished stages hand over, and reset networks and optimisers as the stages request.

        Args:
            step: The step that follows.
        """
        stages = self._plan.stages
        stages.hand_over(self.networks, step)
        for name in stages.restarts(step):
            fresh = self._build(_number(self._plan.recipe.seed, 7, step))[name]
            self.networks[name].load_state_dict(fresh.state_dict())
        if self.ema is not None and stages.restarts(step):
            self.ema.load_state_dict(self._current().state_dict())
        for name in {*stages.restarts(step), *stages.fresh_optimisers(step)}:
            self.optimisers[name].state.clear()

    def update(self, batch: Batch, step_plan: StepPlan) -> dict[str, float]:
        """Update the networks that the plan of the step names, and return the terms of the loss.

        Raises:
            TrainingError: The loss is not finite.
        """
        stages, recipe, scaler = self._plan.stages, self._plan.recipe, self._accelerator.scaler
        # Dropout and noise depend only on the seed, the step and the process.
        torch.manual_seed(_number(recipe.seed, 5, batch.step, *([rank()] if rank() else [])))
        stages.prepare(self.networks, step_plan, batch.step)
        optimisers = {name: self.optimisers[name] for name in step_plan.rates}
        for name, optimiser in optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = step_plan.rates[name]
        terms: dict[str, float] = {}
        for part in batch.parts(recipe.accumulate):
            with mixed_precision(self._accelerator):
                losses = stages.loss(self.networks, part, step_plan)
            share = len(part) / len(batch)
            _require_finite(losses["total"], batch)
            loss = losses["total"] * share
            (loss if scaler is None else scaler.scale(loss)).backward()
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) * share
        average_gradients([self.networks[name] for name in optimisers])
        terms = average_values(terms, self._accelerator.device)
        clip = {name: stages.optimiser(name).clip_norm for name in optimisers}
        step_optimisers(optimisers, {name: self.networks[name] for name in optimisers}, clip, scaler)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        stages.after_update(self.networks, step_plan, batch.step)
        average_buffers(network for network in self.networks.values() if network.training)
        self._follow(step_plan)
        return terms

    def _follow(self, step_plan: StepPlan) -> None:
        """Update the moving average after an update of the student in a phase with validation."""
        decay = self._plan.recipe.ema
        if self.ema is not None and decay is not None and step_plan.validate and "student" in step_plan.rates:
            current = self._plan.stages.exported(self.networks)
            update_moving_average(self.ema, current, ema_decay(step_plan.student_update, decay), buffers=True)

    def exported(self) -> nn.Module:
        """Return a copy of the module to export: the exported network, or its moving average."""
        if self.ema is None:
            return self._current()
        network = network_from_manifest(self._manifest)
        network.load_state_dict(self.ema.state_dict())
        return network.to(self._accelerator.device).eval()

    def _current(self) -> nn.Module:
        """Return a copy of the exported network with its current weights."""
        network = network_from_manifest(self._manifest)
        network.load_state_dict(self._plan.stages.exported(self.networks).state_dict())
        return network.to(self._accelerator.device).eval()

    def segmenter(self, network: nn.Module | None = None) -> Segmenter:
        """Create a segmenter for ``network``, by default for the current state of the module to export."""
        network = self.exported() if network is None else network
        return make_segmenter(self._manifest, TorchEngine(network, self._accelerator.device))

    def state(self) -> dict[str, Any]:
        """Return the fields of :class:`trainer.checkpoints.TrainingState` that concern networks and optimisers."""
        scaler = self._accelerator.scaler
        return {
            "networks": {name: network.state_dict() for name, network in self._kept().items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _kept(self) -> Networks:
        """Return the networks that a checkpoint contains."""
        return self.networks if self.ema is None else {**self.networks, EMA_KEY: self.ema}

    def restore(self, networks: dict[str, Any], optimisers: dict[str, Any], scaler: dict[str, Any] | None) -> None:
        """Restore the state from a checkpoint."""
        for name, network in self._kept().items():
            network.load_state_dict(networks[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(optimisers[name])
        if scaler is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(scaler)


def _require_finite(total: Tensor, batch: Batch) -> None:
    if not bool(torch.isfinite(total)):
        scans = ", ".join(sorted(set(batch.cases)))
        raise TrainingError(
            f"The loss is not finite at step {batch.step}, on patches of {scans}. Check these scans with "
            "`semiseg data check`; if they are valid, lower the learning rate or train with `precision: fp32`."
        )


def _number(*parts: int) -> int:
    """Derive one seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
