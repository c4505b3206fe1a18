"""`semiseg suggest DATA`: choose the scans to outline first, before any network has been trained."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from semiseg.bundle.bundle import RUN
from semiseg.errors import InputError

if TYPE_CHECKING:
    from semiseg.dataset import Dataset
    from trainer.first_scans import ScanSelection


def is_dataset(folder: Path) -> bool:
    """Return True if ``folder`` is a dataset and not a run."""
    if (folder / RUN).is_file():
        return False
    return (folder / "dataset.json").is_file() or (folder / "imagesTr").is_dir()


def suggest_first_scans(
    folder: Path, out: Path, count: int, asked: Sequence[str] | None, split_file: Path | None
) -> None:
    """Choose scans by their images, print them with the reasons, and write suggestions.csv and pictures.

    Args:
        folder: The dataset.
        out: Folder for what is written.
        count: Number of scans to choose.
        asked: Names of the scans to choose among; by default all that the split allows for training.
        split_file: Split file; by default the dataset's own, if it has one.

    Raises:
        InputError: There are too few scans, one cannot be read, or one of ``asked`` is kept for judging.
    """
    from semiseg.dataset import find_split, load_dataset, read_channels
    from semiseg.dataset.dataset_json import abbreviate_ids
    from semiseg.outputs.overlay import contact_sheet
    from trainer.first_scans import EVIDENCE_NOTE, select_first_scans

    dataset = load_dataset(folder)
    file = find_split(dataset, split_file)
    ids = _may_be_outlined(dataset, asked, file)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Comparing scans", total=len(ids))
        choice = select_first_scans(dataset, ids, count, progress=lambda done, _: bar.update(task, completed=done))
    out.mkdir(parents=True, exist_ok=True)
    _write_table(choice, out / "suggestions.csv")
    kept = (
        "no split file keeps scans for the test" if file is None else f"test and development scans of {file} left out"
    )
    typer.echo(f"Scans to outline first, chosen among {len(ids)} by their images alone ({kept}):")
    for rank, name in enumerate(choice.chosen, start=1):
        reason = _reason(choice, name)
        typer.echo(f"{rank:3d}  {name}  {reason}")
        image = next(iter(read_channels(dataset.case(name), dataset.channels).values()))
        contact_sheet(out / f"{rank:02d}-{name}.png", image, [], (), f"{rank}. {name}: {reason}")
    typer.echo("A distance of 1 is the median distance between two of the scans.")
    if choice.outliers:
        typer.echo(
            f"Not chosen because they are unlike all others; look at them before training: "
            f"{abbreviate_ids(choice.outliers)}."
        )
    typer.echo(f"All scans: {out / 'suggestions.csv'}; pictures of the chosen ones beside it.")
    typer.echo(EVIDENCE_NOTE)


def _may_be_outlined(dataset: Dataset, asked: Sequence[str] | None, file: Path | None) -> tuple[str, ...]:
    """The scans that may be chosen: those of ``asked``, or all training scans; never one that is kept for judging."""
    from semiseg.dataset import read_split

    lists = None if file is None else read_split(dataset, file)
    closed = set() if lists is None else {*lists.test, *lists.development}
    for name in asked or ():
        dataset.case(name)
        if name in closed:
            raise InputError(f"{file} keeps scan '{name}' for judging (test or development), so it cannot be chosen.")
    if asked:
        return tuple(asked)
    train = None if lists is None else lists.train
    return tuple(name for name in (dataset.cases if train is None else train) if name not in closed)


def _reason(choice: ScanSelection, name: str) -> str:
    others = [scan.distance for scan in choice.represented(name)]
    if not others:
        return "nearest to no other scan"
    return (
        f"nearest to {len(others)} other scan{'s' * (len(others) > 1)}, {sum(others) / len(others):.2f} away on average"
    )


def _write_table(choice: ScanSelection, path: Path) -> None:
    """All scans: the chosen ones by rank, then the others by name."""
    from semiseg.system.durable_files import atomic_file

    ranks = {name: rank for rank, name in enumerate(choice.chosen, start=1)}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "scan", "nearest", "distance", "represents", "unlike_all"])
    for scan in sorted(choice.scans, key=lambda s: (ranks.get(s.scan, len(ranks) + 1), s.scan)):
        rank = ranks.get(scan.scan)
        represents = "" if rank is None else len(choice.represented(scan.scan))
        unlike = "yes" if scan.scan in choice.outliers else "no"
        writer.writerow([rank or "", scan.scan, scan.nearest, f"{scan.distance:.4f}", represents, unlike])
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())
