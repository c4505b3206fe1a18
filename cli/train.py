"""`semiseg train`: a dataset and a recipe in, a run folder out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

app = typer.Typer()


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Dataset folder in Medical Segmentation Decathlon form.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of one that comes with semiseg.")] = "default",
    method: Annotated[str | None, typer.Option(help="supervised, mean_teacher, mn, ...; else the recipe's.")] = None,
    labelled: Annotated[int | None, typer.Option(help="How many labelled scans of the split to use.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; by default DATA/split.json.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: key=value, repeatable.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Keep preprocessed scans here; runs may share it.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU when there is one.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train on a few labelled and many unlabelled scans."""
    from semiseg.dataset import load_dataset, make_split
    from trainer.loop import train as run_training
    from trainer.parallel import leave
    from trainer.plan import make_plan
    from trainer.recipe import find_recipe, read_recipe

    changes = [*(set_ or []), *([f"method={method}"] if method else [])]
    chosen = read_recipe(find_recipe(recipe), changes)
    dataset = load_dataset(data)
    parts = make_split(dataset, split, labelled)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun or accelerate started
    console = Console(stderr=True, quiet=quiet or not first)
    console.print(
        f"{chosen.method} on {dataset.name}: {len(parts.labelled)} labelled, {len(parts.unlabelled)} unlabelled, "
        f"{len(parts.validation)} validation scans; {chosen.updates} updates."
    )
    with _progress(console) as bars:
        tasks: dict[str, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        def report(step: int, steps: int, values: dict[str, Any]) -> None:
            watch("training", step, steps)
            terms = ", ".join(
                f"{name} {value:.3f}"
                for name, value in values.items()
                if isinstance(value, float) and "/" not in name and name not in ("total", "seconds", "elapsed")
            )
            bars.update(tasks["training"], description=f"{values['stage']}: {terms}")

        plan = make_plan(dataset, parts, chosen, watch)
        manifest = run_training(
            plan, out, resume=resume, cache=cache, device=device, report=report, watch=watch, tell=console.print
        )
    figures = manifest.validation
    if figures is None:
        console.print("not validated: the split has no validation list, so the last iterate is kept")
    else:
        dice = ", ".join(f"{name} {value:.3f}" for name, value in figures.dice.items())
        console.print(f"validation Dice on {figures.scans} scans: {dice}")
    if first:
        typer.echo(str(out))
    leave()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )
