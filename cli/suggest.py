"""`semiseg suggest`: which unlabelled scan to outline next."""

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
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A finished run, or several of them.")],
    data: Annotated[Path, typer.Option(help="Dataset folder that the run was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder for suggestions.csv and a picture of each of the first scans.")],
    count: Annotated[int, typer.Option(min=1, help="How many scans to show.")] = 5,
    scans: Annotated[str | None, typer.Option(help="Rank these scans, separated by commas, instead.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU when there is one.")] = None,
) -> None:
    """Rank unlabelled scans by how much trained networks disagree on them."""
    from semiseg.dataset import find_split, load_dataset, read_split
    from semiseg.outputs.overlay import contact_sheet
    from semiseg.volumes.atomic_file import atomic_file
    from trainer.suggestion import committee_of, unlabelled_of, votes

    dataset = load_dataset(data)
    file = find_split(dataset, split)
    closed = () if file is None else (*(lists := read_split(dataset, file)).test, *lists.development)
    asked = [name.strip() for name in scans.split(",") if name.strip()] if scans else None
    ids = tuple(asked) if asked else unlabelled_of(runs[0], dataset, closed)
    unknown = [i for i in ids if i not in dataset.cases]
    if unknown:
        raise InputError(f"{dataset.folder} has no scan called '{unknown[0]}'.")
    committee = committee_of(runs, device)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Voting", total=len(ids))
        found = list(votes(committee, dataset, ids, lambda done, _: bar.update(task, completed=done)))
    found.sort(key=lambda v: (math.isnan(v.disagreement), -v.disagreement, v.case_id))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "scan", "disagreement", *(s.name for s in committee.manifest.segments)])
    for rank, vote in enumerate(found, start=1):
        writer.writerow([rank, vote.case_id, *(f"{v:.4f}" for v in (vote.disagreement, *vote.by_segment.values()))])
    with atomic_file(out / "suggestions.csv") as stream:
        stream.write(text.getvalue().encode())
    typer.echo(f"Disagreement (1 - Dice) of {committee.words}, largest first, of {len(found)} scans:")
    for rank, vote in enumerate(found[:count], start=1):
        typer.echo(f"{rank:3d}  {vote.case_id}  {vote.disagreement:.3f}")
        caption = f"{rank}. {vote.case_id}: disagreement {vote.disagreement:.3f}"
        picture = out / f"{rank:02d}-{vote.case_id}.png"
        contact_sheet(picture, vote.image, list(vote.masks.items()), committee.manifest.segments, caption)
    typer.echo(f"All of them: {out / 'suggestions.csv'}; pictures beside it.")
