"""Updates per second of the training loop against a bare PyTorch loop, and where the time of an update goes.

    python docs/results/throughput/loop.py DATA [--recipe hippocampus] [--method supervised] [--updates 200] [--block 5]

Both train the same networks, from the same start, on the same batches made by the same code, with the same losses and
optimisers, in one process, in turns of a few updates: what slows the machine for a while slows both. The bare loop only
draws a batch, computes the loss, goes backward and steps. The figure is the ratio of the sums of their times; the
interval comes from drawing the turns with replacement.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semiseg.dataset import load_dataset, make_split
from trainer.cases import prepare_cases
from trainer.loop import train
from trainer.optimisers import make_optimiser
from trainer.patches import BatchComposition, PatchSampler, PatchSource, load_batches
from trainer.plan import TrainingPlan, make_plan
from trainer.recipe_files import find_recipe, read_recipe

PARTS = ("data", "forward", "backward", "other")
Times = NDArray[np.float64]


def bare(plan: TrainingPlan, cache: Path, updates: int) -> Iterator[dict[str, float]]:
    """Seconds of each step, by part."""
    stages, recipe = plan.stages, plan.recipe
    cases = prepare_cases(plan.dataset, plan.split.labelled, plan.unlabelled, plan.segments, plan.preprocessing, cache)
    draws = PatchSampler(recipe, cases, plan.split.labelled, plan.unlabelled)
    source = PatchSource(recipe, cases, plan.preprocessing.slice_axis, plan.preprocessing.padding)
    torch.manual_seed(recipe.seed)
    networks = stages.build()
    optimisers = {
        name: make_optimiser(stages.optimiser(name), network)
        for name, network in networks.items()
        if any(p.requires_grad for p in network.parameters())
    }
    step_plans = [stages.step_plan(step) for step in range(updates)]
    requests, before = [], BatchComposition(0, 0)
    for step, step_plan in enumerate(step_plans):
        requests.append(draws.requests(step, step_plan.composition, before))
        before += step_plan.composition
    made = load_batches(source, iter(requests), 0, 0, False)
    for step, step_plan in enumerate(step_plans):
        marks = [time.perf_counter()]
        batch = next(made)
        marks.append(time.perf_counter())
        stages.prepare(networks, step_plan, step)
        loss = stages.loss(networks, batch, step_plan)["total"]
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        for name in step_plan.rates:
            for group in optimisers[name].param_groups:
                group["lr"] = step_plan.rates[name]
            optimisers[name].step()
        for optimiser in optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        stages.after_update(networks, step_plan, step)
        marks.append(time.perf_counter())
        yield dict(zip(PARTS, np.diff(marks).tolist(), strict=True))


def in_turns(plan: TrainingPlan, cache: Path, updates: int, block: int) -> tuple[Times, Times, list[dict[str, float]]]:
    """Seconds of each turn of the product's loop and of the bare one, without reading, building and keeping."""
    beside = bare(plan, cache, updates)
    parts = [next(beside)]  # what is done once, the first step included, is not counted
    ours: list[float] = []
    theirs: list[float] = []
    begun = 0.0

    def report(step: int, steps: int, values: dict[str, Any]) -> None:
        nonlocal begun
        now = time.perf_counter()
        if (step - 1) % block:
            return
        if step > 1:
            ours.append(now - begun)
            start = time.perf_counter()
            parts.extend(next(beside) for _ in range(block))
            theirs.append(time.perf_counter() - start)
            if step + block > updates:
                raise KeyboardInterrupt
        begun = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        train(plan, Path(folder) / "run", cache=cache, device="cpu", report=report)
    return np.asarray(ours), np.asarray(theirs), parts[1:]


def main() -> None:
    """Print the ratio and the parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="hippocampus")
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--block", type=int, default=5)
    options = parser.parse_args()
    recipe = read_recipe(find_recipe(options.recipe), [f"method={options.method}"])
    dataset = load_dataset(options.data)
    plan = make_plan(dataset, make_split(dataset, None, 4), recipe)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, parts = in_turns(plan, Path(folder), options.updates, options.block)
    drawn = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
    low, high = np.percentile(theirs[drawn].sum(axis=1) / ours[drawn].sum(axis=1), [2.5, 97.5])
    print(
        f"{options.method}: {len(ours)} turns of {options.block} updates, ours {ours.sum():.1f} s, bare "
        f"{theirs.sum():.1f} s; updates per second of our loop over those of the bare one: "
        f"{theirs.sum() / ours.sum():.3f} [{low:.3f}, {high:.3f}]"
    )
    total = sum(sum(part.values()) for part in parts)
    for name in PARTS:
        spent = sum(part[name] for part in parts)
        print(f"  {name}: {100 * spent / total:.0f} %  ({1000 * spent / len(parts):.0f} ms an update)")


if __name__ == "__main__":
    main()
