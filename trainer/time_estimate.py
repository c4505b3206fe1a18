"""Estimate of the time of a run on this machine, from timing a few steps of each stage.

The time of a step does not depend on the number of steps, so the same timings give the number of updates that fit into
a time budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trainer.batch_stream import prepare_training_cases
from trainer.cases import PreparedCase
from trainer.device import labelling_processes, make_accelerator
from trainer.engine import TorchEngine
from trainer.errors import BudgetTooSmallError, RecipeError
from trainer.methods.method import Method
from trainer.model_set import ModelSet
from trainer.patches import Batch, BatchComposition, PatchSampler, PatchSource, load_batches
from trainer.plan import ProgressCallback, TrainingPlan, make_manifest, make_plan
from trainer.scan_facts import ScanFacts
from trainer.validation import make_segmenter

TIMED_PLACES = 3  # positions in a stage at which steps are timed
TIMED_STEPS = 2  # steps timed at each position, after one that is not timed
UPDATES_MULTIPLE = 8  # updates are a multiple of this, since some methods count in epochs of eight updates
MIN_UPDATES = 64  # smallest number of updates that a budget has to allow


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated time of a part of a run.

    Attributes:
        name: Name of the part, for the user.
        steps: Number of steps; 0 for a part without steps.
        seconds: Time of the whole part in seconds.
    """

    name: str
    steps: int
    seconds: float


class TimeEstimator:
    """Estimator of the time of runs, which times each part once."""

    def __init__(
        self, cache: Path, device: str | None, scans: ScanFacts, watch: ProgressCallback | None = None
    ) -> None:
        """Configure the estimator; nothing is timed yet.

        Args:
            cache: Folder of the preprocessed scans, to which missing scans are added.
            device: ``cpu`` or ``cuda``; None for a GPU if there is one.
            scans: Sizes and values of the training scans.
            watch: Called with (activity, done, total).
        """
        self._cache, self._device, self._scans, self._watch = cache, device, scans, watch
        self._known: dict[tuple[str, ...], float] = {}
        self._counted: set[str] = set()

    def estimate(self, plan: TrainingPlan) -> list[TimeEstimate]:
        """Return the times of the parts of a run, in their order; a part that several members share counts once."""
        self._counted = set()
        return list(self._parts(plan, ()))

    def updates_within(self, seconds: float, plan_of: Callable[[int], TrainingPlan]) -> int:
        """Return the largest number of updates of the student with which a run ends within a time.

        Args:
            seconds: The time in seconds.
            plan_of: Function that returns the plan for a number of updates.

        Raises:
            BudgetTooSmallError: The time is too short for :data:`MIN_UPDATES` updates.
        """
        low, high = 10 * UPDATES_MULTIPLE, 20 * UPDATES_MULTIPLE
        first, second = (sum(cost.seconds for cost in self.estimate(plan_of(n))) for n in (low, high))
        slope = max((second - first) / (high - low), 1e-9)
        updates = int((low + (seconds - first) / slope) // UPDATES_MULTIPLE * UPDATES_MULTIPLE)
        if updates < MIN_UPDATES:
            needed = first + (MIN_UPDATES - low) * slope
            raise BudgetTooSmallError(
                f"A budget of {format_duration(seconds)} allows {max(updates, 0)} updates on this machine, "
                "which is too few; "
                f"{MIN_UPDATES} take {format_duration(needed)}. Allow more time, or use a smaller patch, batch or "
                "student."
            )
        return updates

    # --- the parts ------------------------------------------------------------------------------------------------

    def _parts(self, plan: TrainingPlan, within: tuple[str, ...]) -> Iterator[TimeEstimate]:
        cases = self._cases(plan)
        for number, stage in enumerate(plan.stages.stages):
            name = ": ".join((*within, stage.name))
            yield from self._labelling(plan, stage, cases, name, within)
            if stage.steps:
                each = self._timed((*within, stage.name), partial(self._step, plan, number, cases))
                yield TimeEstimate(name, stage.steps, stage.steps * each)

    def _labelling(
        self, plan: TrainingPlan, stage: Method, cases: dict[str, PreparedCase], name: str, within: tuple[str, ...]
    ) -> Iterator[TimeEstimate]:
        times = sum(stage.refreshes_pseudo_labels(step) for step in range(stage.steps + 1))
        if not times:
            return
        own = stage.labelling_workload()
        if own is None:
            scan = self._timed((*within, stage.name, "scan"), partial(self._prediction, plan, cases))
            yield TimeEstimate(f"{name}: labels of the unlabelled scans", 0, times * len(plan.unlabelled) * scan)
            return
        for recipe, labelled, runs in own.members:
            if not self._first(f"{recipe.model_dump_json()} {labelled}"):
                continue
            split = replace(plan.split, labelled=plan.split.labelled[:labelled], validation=())
            member = make_plan(plan.dataset, split, recipe, scans=self._scans)
            key = (*within, stage.name, f"{recipe.method} (seed {recipe.seed})")
            for cost in self._parts(member, key):
                yield TimeEstimate(
                    f"{cost.name}{f', {runs} times' if runs > 1 else ''}", cost.steps, runs * cost.seconds
                )
            scan = self._timed((*key, "scan"), partial(self._prediction, member, cases))
            yield TimeEstimate(f"{': '.join(key)}: labels", 0, len(plan.unlabelled) * scan)
        if own.registrations and self._first("registration"):
            each = self._timed(("registration",), partial(_registration, plan, cases))
            yield TimeEstimate(f"{name}: registration", 0, own.registrations * each / labelling_processes(plan.recipe))

    def _first(self, part: str) -> bool:
        """Return True if a part that several members share has not been counted yet."""
        met = part in self._counted
        self._counted.add(part)
        return not met

    def _timed(self, key: tuple[str, ...], measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def _cases(self, plan: TrainingPlan) -> dict[str, PreparedCase]:
        return prepare_training_cases(plan, self._cache, self._watch)

    def _step(self, plan: TrainingPlan, number: int, cases: dict[str, PreparedCase]) -> float:
        """Return the mean time of a step of a stage in seconds, including its patches."""
        if plan.recipe.threads is not None:
            torch.set_num_threads(plan.recipe.threads)
        accelerator = make_accelerator(plan.recipe, self._device)
        models = ModelSet(plan, make_manifest(plan), accelerator)
        first = sum(stage.steps for stage in plan.stages.stages[:number])
        steps = plan.stages.stages[number].steps
        found = []
        for place in np.linspace(0, max(0, steps - TIMED_STEPS - 1), TIMED_PLACES).astype(int):
            for offset in range(min(TIMED_STEPS + 1, steps)):
                step = first + min(int(place) + offset, steps - 1)
                started = time.perf_counter()
                models.update(self._batch(plan, step, cases).to(accelerator.device), plan.stages.step_plan(step))
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                if offset or steps == 1:
                    found.append(time.perf_counter() - started)
        return float(np.mean(found))

    def _batch(self, plan: TrainingPlan, step: int, cases: dict[str, PreparedCase]) -> Batch:
        """Make the batch of a step, with empty pseudo-labels of the stages that guide it."""
        stage, _ = plan.stages.stage_at(step)
        draws = PatchSampler(plan.recipe, cases, plan.split.labelled, plan.unlabelled)
        source = PatchSource(
            plan.recipe, cases, plan.preprocessing.slice_axis, plan.preprocessing.padding, views=stage.views
        )
        requests = draws.requests(step, plan.stages.step_plan(step).composition, BatchComposition(0, 0))
        made = next(load_batches(source, [requests], step, 0, False))
        guides = [earlier.name for earlier in plan.stages.stages if earlier.guides]
        return replace(made, guides=dict.fromkeys(guides, torch.zeros_like(made.labels)))

    def _prediction(self, plan: TrainingPlan, cases: dict[str, PreparedCase]) -> float:
        """Return the time in seconds in which the student labels a scan of median size."""
        accelerator = make_accelerator(plan.recipe, self._device)
        manifest = make_manifest(plan)
        network = ModelSet(plan, manifest, accelerator).exported()
        segmenter = make_segmenter(manifest, TorchEngine(network, accelerator.device))
        image = np.asarray(_median_case(cases).image)
        started = time.perf_counter()
        segmenter.segment_preprocessed(image)
        return time.perf_counter() - started


def parse_duration(text: str) -> float:
    """Convert a time such as ``30m``, ``1.5h`` or ``90s`` to seconds.

    Raises:
        RecipeError: The text is not a positive time in this form.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"A budget is a time such as 30m, 1.5h or 90s, not {text!r}.")
    return seconds


def format_duration(seconds: float) -> str:
    """Format a time as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _median_case(cases: dict[str, PreparedCase]) -> PreparedCase:
    ordered = sorted(cases.values(), key=lambda case: case.image.size)
    return ordered[len(ordered) // 2]


def _registration(plan: TrainingPlan, cases: dict[str, PreparedCase]) -> float:
    """Return the time in seconds of registering one labelled scan onto a scan of median size."""
    from trainer.registration import prepare_scan, register, working_spacing

    moving, fixed = cases[plan.split.labelled[0]], _median_case(cases)
    side = working_spacing([case.shape for case in cases.values()], [case.spacing for case in cases.values()])
    scans = [prepare_scan(np.asarray(case.image[0]), case.spacing, side) for case in (fixed, moving)]
    started = time.perf_counter()
    register(*scans)
    return time.perf_counter() - started
