"""`semiseg train`: train on a dataset with a recipe; the result is a run folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from trainer.recipe_rules import RecipeDecision
    from trainer.time_estimate import TimeEstimate

app = typer.Typer()


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Dataset folder in Medical Segmentation Decathlon form.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of one that comes with semiseg.")] = "default",
    method: Annotated[
        str | None, typer.Option(help="Training method: supervised, mean_teacher, mn, ...; by default the recipe's.")
    ] = None,
    labelled: Annotated[int | None, typer.Option(help="Number of labelled scans of the split to use.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; by default DATA/split.json.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: key=value, repeatable.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Keep preprocessed scans here; runs may share it.")] = None,
    device: Annotated[str | None, typer.Option(help="Device: cpu or cuda; by default a GPU when there is one.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time that training may take, such as 30m or 2h; the updates follow.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is decided and how long each part takes here; do not train.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train on a few labelled and many unlabelled scans."""
    from trainer.parallel import shut_down
    from trainer.training import prepare_training

    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun or accelerate started
    console = Console(stderr=True, quiet=quiet or not first, highlight=False)
    with ExitStack() as stack:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory())) if dry_run and cache is None else cache
        bars = stack.enter_context(_progress(console))
        tasks: dict[str, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        training = prepare_training(
            data,
            out,
            recipe=recipe,
            method=method,
            changes=set_ or (),
            labelled=labelled,
            split=split,
            budget=budget,
            resume=resume,
            cache=kept,
            device=device,
            watch=watch,
        )
        chosen, parts = training.recipe, training.split
        console.print(
            f"{chosen.method} on {training.dataset.name}: {len(parts.labelled)} labelled, {len(parts.unlabelled)} "
            f"unlabelled, {len(parts.validation)} validation scans; {chosen.updates} updates."
        )
        if training.decisions:
            console.print(_decisions(training.decisions), markup=False)
        if dry_run:
            typer.echo(_costs(training.estimate_time()))
            return

        def report(step: int, steps: int, values: dict[str, Any]) -> None:
            watch("training", step, steps)
            terms = ", ".join(
                f"{name} {value:.3f}"
                for name, value in values.items()
                if isinstance(value, float) and "/" not in name and name not in ("total", "seconds", "elapsed")
            )
            bars.update(tasks["training"], description=f"{values['stage']}: {terms}")

        manifest = training.train(report, console.print)
    figures = manifest.validation
    if figures is None:
        console.print("not validated: the split has no validation list, so the last iterate is kept")
    else:
        dice = ", ".join(f"{name} {value:.3f}" for name, value in figures.dice.items())
        console.print(f"validation Dice on {figures.scans} scans: {dice}")
    if first:
        typer.echo(str(out))
    shut_down()


def _decisions(decisions: Sequence[RecipeDecision]) -> str:
    """Two lines for each decision: its value and the reason."""
    lines = []
    for one in decisions:
        value = yaml.safe_dump(one.value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        lines += [f"  {one.key}: {value}", f"      {one.reason}"]
    return "\n".join(lines)


def _costs(costs: Sequence[TimeEstimate]) -> str:
    """The estimated time of each part of a run, and the total."""
    from trainer.time_estimate import format_duration

    lines = [
        f"{format_duration(cost.seconds):>8}  {cost.name}" + (f", {cost.steps} steps" if cost.steps else "")
        for cost in costs
    ]
    total = sum(cost.seconds for cost in costs)
    return "\n".join([*lines, f"{format_duration(total):>8}  all of it, by a few steps of each on this machine"])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )
