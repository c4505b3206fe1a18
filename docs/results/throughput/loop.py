"""Updates per second of the training loop against a bare PyTorch loop, and where the time of an update goes.

    python docs/results/throughput/loop.py DATA [--recipe hippocampus] [--method supervised] [--updates 40] [--rounds 3]

Both train the same networks, from the same start, on the same batches made by the same code, with the same losses and
optimisers, in one process, in turns: the bare loop does nothing but draw a batch, compute the loss, go backward and
step. The figure is the median over rounds of the ratio of their times.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from semiseg.dataset import load_dataset, make_split
from trainer.cases import prepare_cases
from trainer.loop import train
from trainer.optimisers import make_optimiser
from trainer.patches import Draws, Mixture, PatchSource, batches
from trainer.plan import Plan, make_plan
from trainer.recipe import find_recipe, read_recipe


def bare(plan: Plan, cache: Path, updates: int) -> dict[str, float]:
    """Seconds of ``updates`` steps, in all and by part."""
    method, recipe = plan.method, plan.recipe
    cases = prepare_cases(plan.dataset, plan.split.labelled, plan.unlabelled, plan.segments, plan.preprocessing, cache)
    draws = Draws(recipe, cases, plan.split.labelled, plan.unlabelled)
    source = PatchSource(recipe, cases, plan.preprocessing.slice_axis, plan.preprocessing.padding)
    torch.manual_seed(recipe.seed)
    networks = method.build()
    optimisers = {
        name: make_optimiser(method.optimiser(name), network)
        for name, network in networks.items()
        if any(p.requires_grad for p in network.parameters())
    }
    turns = [method.turn(step) for step in range(updates)]
    requests, before = [], Mixture(0, 0)
    for step, turn in enumerate(turns):
        requests.append(draws.requests(step, turn.mixture, before))
        before = Mixture(before.labelled + turn.mixture.labelled, before.unlabelled + turn.mixture.unlabelled)
    spent = {"data": 0.0, "forward": 0.0, "backward": 0.0, "other": 0.0}
    begun = mark = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        spent[part] += now - mark
        mark = now

    for batch, turn in zip(batches(source, iter(requests), 0, recipe.workers, False), turns, strict=True):
        lap("data")
        method.prepare(networks, turn)
        loss = method.loss(networks, batch, turn)["total"]
        lap("forward")
        loss.backward()
        lap("backward")
        for name in turn.rates:
            for group in optimisers[name].param_groups:
                group["lr"] = turn.rates[name]
            optimisers[name].step()
        for optimiser in optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        method.after_update(networks, turn)
        lap("other")
    return {**spent, "all": time.perf_counter() - begun}


def ours(plan: Plan, cache: Path, updates: int) -> float:
    """Seconds of the same steps in the product's loop, by its own clock, without reading and keeping."""
    told: list[float] = []

    def report(step: int, steps: int, values: dict[str, Any]) -> None:
        told.append(time.perf_counter())
        if step == updates:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        train(plan, Path(folder) / "run", cache=cache, device="cpu", report=report)
    # From the end of the first step to the end of the last: building the networks is not training.
    return (told[-1] - told[0]) * updates / (updates - 1)


def main() -> None:
    """Print the ratio and the parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="hippocampus")
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    recipe = read_recipe(find_recipe(options.recipe), [f"method={options.method}"])
    dataset = load_dataset(options.data)
    plan = make_plan(dataset, make_split(dataset, None, 4), recipe)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        bare(plan, cache, 4)  # fills the cache, warms the caches of the libraries
        ratios, parts = [], []
        for number in range(options.rounds):
            order = (bare, ours) if number % 2 else (ours, bare)
            seconds: dict[str, float] = {}
            for loop in order:
                found = loop(plan, cache, options.updates)
                if isinstance(found, dict):
                    parts.append(found)
                    seconds["bare"] = found["all"]
                else:
                    seconds["ours"] = found
            ratios.append(seconds["bare"] / seconds["ours"])
            print(f"round {number}: bare {seconds['bare']:.2f} s, ours {seconds['ours']:.2f} s, ratio {ratios[-1]:.3f}")
    print(
        f"{options.method}: updates per second of our loop over those of the bare one: {statistics.median(ratios):.3f}"
    )
    total = statistics.median(p["all"] for p in parts)
    for part in ("data", "forward", "backward", "other"):
        share = statistics.median(p[part] / p["all"] for p in parts)
        print(f"  {part}: {100 * share:.0f} %  ({1000 * share * total / options.updates:.0f} ms an update)")


if __name__ == "__main__":
    main()
