"""`semiseg data`: check a dataset and split it before training."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from semiseg.dataset import (
    Dataset,
    DatasetFinding,
    Split,
    check_dataset,
    find_split,
    load_dataset,
    make_split,
    random_split,
    read_split,
    write_split,
)

app = typer.Typer(no_args_is_help=True)

DataFolder = Annotated[
    Path, typer.Argument(metavar="DATA", help="Dataset folder (imagesTr/, labelsTr/, dataset.json).")
]
TITLES = {
    "file": "Files",
    "grid": "Grids of image and label",
    "labels": "Label values",
    "content": "Content",
    "duplicate": "Scans that occur twice",
    "segments": "Segments",
    "spacing": "Spacing",
    "split": "Split",
}


@app.command()
def check(
    data: DataFolder,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    labelled: Annotated[int | None, typer.Option(help="Open the labels of this budget only.", min=1)] = None,
    all_labels: Annotated[
        bool, typer.Option("--all-labels", help="Open every label, also of scans that the split keeps unlabelled.")
    ] = False,
) -> None:
    """Read every scan and report faults: exit code 0 if training is possible, 1 if a fault must be corrected."""
    console = Console()
    dataset = load_dataset(data)
    chosen = _split_to_check(dataset, split, labelled)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Reading scans", total=len(dataset.cases))
        findings = check_dataset(
            dataset, chosen, all_labels=all_labels, progress=lambda done, _: bar.update(task, completed=done)
        )
    console.print(_what_was_read(dataset, chosen, all_labels), highlight=False, markup=False, soft_wrap=True)
    for kind, group in groupby(sorted(findings, key=lambda f: list(TITLES).index(f.kind)), key=lambda f: f.kind):
        console.print(f"\n[bold]{TITLES[kind]}[/bold]")
        for finding in group:
            _print_finding(console, finding)
    errors = sum(f.severity == "error" for f in findings)
    warnings = len(findings) - errors
    console.print(f"\n{errors} error(s), {warnings} warning(s)." if findings else "\nNothing wrong was found.")
    if errors:
        raise typer.Exit(1)


@app.command()
def split(
    data: DataFolder,
    test: Annotated[int, typer.Option(help="Number of outlined scans for the test at the end.", min=1)],
    labelled: Annotated[
        list[int],
        typer.Option(help="Number of labelled scans for training; repeat the option for nested lists.", min=1),
    ],
    development: Annotated[int, typer.Option(help="Number of outlined scans for choosing settings.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write; DATA/split.json by default.")] = None,
) -> None:
    """Draw test, development and labelled scans by a seeded shuffle and write the split; no file is replaced."""
    dataset = load_dataset(data)
    drawn = random_split(dataset, test=test, labelled=labelled, development=development, seed=seed)
    path = out or dataset.folder / "split.json"
    write_split(drawn, path)
    budgets = ", ".join(str(n) for n in drawn.budgets)
    Console().print(
        f"{path}: {test} test, {development} development, {len(drawn.train or ())} for training, of which {budgets} "
        "labelled.",
        highlight=False,
        markup=False,
    )


def _split_to_check(dataset: Dataset, split_file: Path | None, labelled: int | None) -> Split | None:
    """The split to check with; a file with lists for several budgets is checked for each, and the largest is read."""
    path = find_split(dataset, split_file)
    if path is None:
        return make_split(dataset, None, labelled) if labelled else None
    budgets = (labelled,) if labelled else read_split(dataset, path).budgets
    splits = [make_split(dataset, path, budget) for budget in budgets or (None,)]
    return splits[-1]


def _what_was_read(dataset: Dataset, split: Split | None, all_labels: bool) -> str:
    names = ", ".join(s.display_name for s in dataset.segments) or "unnamed labels"
    text = f"{dataset.name}: {len(dataset.cases)} scans, channels {', '.join(dataset.channels)}; {names}."
    if split:
        pools = ", ".join(f"{len(ids)} {pool}" for pool, ids in split.pools().items() if ids)
        text += f" Split: {pools}."
    if split is None or all_labels:
        outlined = sum(case.label is not None for case in dataset.cases.values())
        return f"{text} All {outlined} labels were opened."
    opened = {*split.labelled, *split.validation, *split.test, *split.development}
    closed = sum(case.label is not None for case in dataset.cases.values() if case.id not in opened)
    return f"{text} The labels of {closed} scans stayed closed (--all-labels opens them)."


def _print_finding(console: Console, finding: DatasetFinding) -> None:
    colour = "red" if finding.severity == "error" else "yellow"
    where = f"{finding.case}: " if finding.case else ""
    console.print(
        f"  [{colour}]{finding.severity}[/{colour}] {escape(where + finding.sentence)}", highlight=False, soft_wrap=True
    )
