"""`semiseg compare`: methods x labels x seeds on one split with one budget, ending in one table and one plot."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from semiseg.errors import InputError

app = typer.Typer(add_completion=False)

WIDTH = 160  # of the table in a file


class ComparisonSubset(StrEnum):
    """List of the split on which the trained methods are evaluated."""

    test = "test"
    development = "development"


@app.command()
def compare(
    data: Annotated[Path, typer.Option(help="Dataset folder in Medical Segmentation Decathlon form.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas: supervised,mean_teacher,mn. NAME=METHOD is a further row of a method, "
            "for which --set NAME:key=value says what is different."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for runs, table and plot; name it again to go on.")],
    labelled: Annotated[str, typer.Option(help="Counts of labelled scans, separated by commas.")] = "4",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    draws: Annotated[
        int, typer.Option(min=0, help="Random draws of the labelled scans; 0 takes the split's own list.")
    ] = 0,
    folds: Annotated[
        int, typer.Option(min=0, help="Folds over all outlined scans, each judged once, instead of the split's lists.")
    ] = 0,
    recipe: Annotated[
        str, typer.Option(help="One recipe for all: a file, or a name that comes with semiseg.")
    ] = "default",
    updates: Annotated[
        int | None, typer.Option(min=1, help="Budget: updates of the student; else the recipe's.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Budget: wall time of training, instead.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    on: Annotated[
        ComparisonSubset, typer.Option(help="Judge on the test list, or while choosing settings on development.")
    ] = ComparisonSubset.test,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change the recipe: key=value, or METHOD:key=value for one row of the table; repeatable."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; with several GPUs they take turns.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Keep preprocessed scans here; by default in OUT.")] = None,
) -> None:
    """Train every method with each number of labels, draw, fold and seed, and compare them on the same scans."""
    from cli.comparison_runner import ComparisonRunner, is_method_specific
    from trainer.comparison import (
        format_table,
        make_trials,
        plot_comparison,
        read_evaluations,
        summarise_trials,
        write_csv,
    )

    if updates is not None and minutes is not None:
        raise InputError("A budget is --updates or --minutes, not both.")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    rows, renamed = _rows(methods)
    strangers = {c.partition(":")[0] for c in set_ or [] if is_method_specific(c)} - set(rows)
    if strangers:
        raise InputError(f"--set {sorted(strangers)[0]}:... is for a method that is not compared ({methods}).")
    if folds and (split is not None or on is not ComparisonSubset.test):
        raise InputError("With --folds every outlined scan is judged once; leave --split and --on out.")
    counts = _numbers(labelled, "--labelled")
    todo = make_trials(
        rows,
        counts,
        _numbers(seeds, "--seeds"),
        range(1, draws + 1) if draws else (0,),
        range(1, folds + 1) if folds else (0,),
    )
    changes = (
        *(set_ or []),
        *([f"updates={updates}"] if updates else []),
        *([f"threads={max(1, (os.cpu_count() or 1) // jobs)}"] if jobs > 1 else []),
    )
    runner = ComparisonRunner(
        out, data, recipe, split, changes, on.value, cache or out / "cache", console.print, methods=renamed
    )
    (out / "runs").mkdir(parents=True, exist_ok=True)
    runner.write_splits(counts, draws, folds)
    if minutes is not None:
        runner.calibrate(todo, minutes)
    for trial in todo:
        runner.require_same(trial)
    runner.train(todo, jobs)
    runner.evaluate(todo)
    found = read_evaluations((trial, runner.scores(trial) / "scores.json") for trial in todo)
    lines = summarise_trials(found)
    title = f"{data.resolve().name}: {on.value} scans" + (f", {minutes:g} min each" if minutes else "")
    _show(format_table(lines), title)
    write_csv(lines, out / f"{on.value}.csv")
    plot_comparison(lines, out / f"{on.value}.png", title)
    remarks = dict.fromkeys(note for evaluation in found.values() for note in evaluation.notes)
    for remark in (*remarks, *(line.missing_figures_note for line in lines if line.missing_figures_note)):
        typer.echo(remark)
    for name, sentence in runner.failed.items():
        console.print(f"failed: {name}: {sentence}", style="red")
    if runner.failed:
        raise typer.Exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _rows(text: str) -> tuple[list[str], dict[str, str]]:
    """The names of the rows of the table, and the methods of those that have another name.

    Raises:
        InputError: A name would make no folder or no METHOD:key=value, is there twice, or is another method's.
    """
    from trainer.methods.registry import BUILT_IN

    rows: list[str] = []
    methods: dict[str, str] = {}
    for part in _names(text):
        name, equals, method = (piece.strip() for piece in part.partition("="))
        if equals:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name) or not method:
                raise InputError(
                    f"--methods {part}: a row is NAME=METHOD, and its name consists of letters, digits and _ . + -."
                )
            if name in BUILT_IN and method != name:
                raise InputError(f"--methods {part}: {name} is a method, so a row of another one cannot have its name.")
            methods[name] = method
        if name in rows:
            raise InputError(f"--methods: {name} is named twice.")
        rows.append(name)
    return rows, methods


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise InputError(f"{option} takes whole numbers separated by commas, not {text!r}.") from None


def _show(rows: list[list[str]], title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if number == 1 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
