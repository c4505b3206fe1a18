"""`semiseg suggest`: choose the scans of a dataset to outline first, or the unlabelled scans to outline next."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from semiseg.errors import InputError

app = typer.Typer(add_completion=False)


@app.command()
def suggest(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...|DATA", help="A finished run, or several of them; or a dataset folder, before any run."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for suggestions.csv and a picture of each of the first scans.")],
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder that the run was trained on, where it has moved.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of scans to show; 5 by default, or 4 of a dataset folder.")
    ] = None,
    scans: Annotated[
        str | None, typer.Option(help="Rank these scans, or choose among them, separated by commas.")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    device: Annotated[str | None, typer.Option(help="Device: cpu or cuda; by default a GPU when there is one.")] = None,
) -> None:
    """Rank unlabelled scans by how much trained networks disagree on them; or choose the first scans to outline.

    Given a dataset folder instead of runs, the command chooses scans by their images alone: typical ones that differ
    from one another.
    """
    from cli.dataset_option import resolve_dataset_folder
    from cli.first_scans import is_dataset, suggest_first_scans
    from semiseg.dataset import find_split, load_dataset, read_split
    from semiseg.outputs.overlay import contact_sheet
    from semiseg.system.durable_files import atomic_file
    from trainer.suggestion import (
        ScanDisagreement,
        agreement_warning,
        load_committee,
        measure_disagreement,
        unlabelled_scans,
    )

    asked = [name.strip() for name in scans.split(",") if name.strip()] if scans else None
    folders = [path for path in runs if is_dataset(path)]
    if folders:
        if len(runs) > 1:
            raise InputError(f"{folders[0]} is a dataset folder and no run: give it alone, or name it with --data.")
        if data is not None:
            raise InputError(f"{folders[0]} is a dataset folder already, so --data has to be left out.")
        suggest_first_scans(folders[0], out, count or 4, asked, split)
        return
    count = count or 5
    dataset = load_dataset(resolve_dataset_folder(data, runs[0]))
    file = find_split(dataset, split)
    closed = () if file is None else (*(lists := read_split(dataset, file)).test, *lists.development)
    ids = tuple(asked) if asked else unlabelled_scans(runs, dataset, closed)
    unknown = [i for i in ids if i not in dataset.cases]
    if unknown:
        raise InputError(f"{dataset.folder} has no scan called '{unknown[0]}'.")
    committee = load_committee(runs, device)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Voting", total=len(ids))
        rows: list[tuple[float, str, list[float]]] = []
        shown: list[ScanDisagreement] = []  # masks take memory: only the first scans so far keep theirs
        for vote in measure_disagreement(committee, dataset, ids, lambda done, _: bar.update(task, completed=done)):
            rows.append((vote.disagreement, vote.case_id, list(vote.by_segment.values())))
            shown = sorted([*shown, vote], key=lambda v: _order(v.disagreement, v.case_id))[:count]
    rows.sort(key=lambda row: _order(row[0], row[1]))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "scan", "disagreement", *(s.name for s in committee.manifest.segments)])
    for rank, (disagreement, case_id, by_segment) in enumerate(rows, start=1):
        writer.writerow([rank, case_id, *(f"{v:.4f}" for v in (disagreement, *by_segment))])
    with atomic_file(out / "suggestions.csv") as stream:
        stream.write(text.getvalue().encode())
    typer.echo(f"Disagreement (1 - Dice) of {committee.description}, largest first, of {len(rows)} scans:")
    for rank, vote in enumerate(shown, start=1):
        typer.echo(f"{rank:3d}  {vote.case_id}  {vote.disagreement:.3f}")
        caption = f"{rank}. {vote.case_id}: disagreement {vote.disagreement:.3f}"
        picture = out / f"{rank:02d}-{vote.case_id}.png"
        contact_sheet(picture, vote.image, list(vote.masks.items()), committee.manifest.segments, caption)
    typer.echo(f"All of them: {out / 'suggestions.csv'}; pictures beside it.")
    if words := agreement_warning([disagreement for disagreement, _, _ in rows]):
        typer.echo(words)


def _order(disagreement: float, case_id: str) -> tuple[bool, float, str]:
    """Sort by figure, largest first; scans without a figure come last."""
    return (math.isnan(disagreement), -disagreement, case_id)
