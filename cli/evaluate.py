"""`semiseg evaluate`: compare the masks of a run or a bundle with reference outlines."""

from __future__ import annotations

import statistics
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli.dataset_option import resolve_dataset_folder
from cli.models import open_model, parse_overlap, parse_window, read_model_manifest, stride_to_overlap
from semiseg.bundle.manifest import Manifest
from semiseg.dataset import Dataset, evaluation_scans, load_dataset
from semiseg.errors import InputError
from semiseg.evaluation.evaluator import SegmentFunction
from semiseg.evaluation.evaluator import evaluate as judge
from semiseg.evaluation.picture import save_picture
from semiseg.evaluation.result import DEFAULT_METRICS, HEADINGS, Evaluation
from semiseg.inference.segmenter import SlidingWindowOptions

app = typer.Typer(add_completion=False)


class EvaluationSubset(StrEnum):
    """List of the split to evaluate on; ``all`` for a folder without a split."""

    test = "test"
    validation = "validation"
    development = "development"
    all = "all"


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="A training run or an exported bundle.")],
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder with the outlines to compare with; by default the run's own.")
    ] = None,
    on: Annotated[
        EvaluationSubset, typer.Option(help="List of the split to evaluate on; 'all' where there is no split.")
    ] = EvaluationSubset.test,
    split: Annotated[Path | None, typer.Option(help="Split file; DATA/split.json if there is one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scores.csv, scores.json and pictures.")] = None,
    save_masks: Annotated[bool, typer.Option("--save-masks", help="Keep the predicted masks in OUT/masks.")] = False,
    window: Annotated[str | None, typer.Option(help="Sliding window such as 96x96x96; the model's own.")] = None,
    overlap: Annotated[
        str | None, typer.Option(help="Share of a window covered by the next, or three such as 0.84,0.84,0.95.")
    ] = None,
    stride: Annotated[
        str | None, typer.Option(help="Voxels from one window to the next, such as 18x18x4, instead of --overlap.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help=f"Columns of the table, such as dice,f1,hd_mm; of {', '.join(HEADINGS)}.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows per call of the network.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; all by default.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Run all windows, also if the model has a coarse pass that skips background.")
    ] = False,
) -> None:
    """Dice, Jaccard, HD95 and ASSD in mm per scan and segment: exit code 1 if a scan failed."""
    if save_masks and out is None:
        raise InputError("--save-masks needs --out, the folder that the masks go to.")
    shown = parse_metrics(metrics)
    dataset = load_dataset(resolve_dataset_folder(data, model))
    scans = evaluation_scans(dataset, split, on.value)
    if overlap is not None and stride is not None:
        raise InputError("--stride is another way to say --overlap; give one of them.")
    settings = SlidingWindowOptions(parse_window(window), parse_overlap(overlap), batch, full)
    if stride is not None:
        settings = replace(
            settings, overlap=stride_to_overlap(stride, settings.window or read_model_manifest(model).window)
        )
    opened = open_model(model, settings, threads=threads)
    manifest = opened.manifest
    if not dataset.segments:  # no dataset.json: the model's own names are the only ones there are
        dataset = dataset.with_names(channels=manifest.channel_names)
    which = f"all {len(scans)} outlined scans" if on is EvaluationSubset.all else f"{len(scans)} {on.value} scans"
    title = f"{manifest.name} on {dataset.name}, {which}"
    keep = out / "masks" if out and save_masks else None
    evaluation = _with_progress(opened.segmenter.segment, dataset, scans, title, evaluation_notes(manifest, on), keep)
    print_evaluation(evaluation, Console(), shown)
    if out:
        write_evaluation(evaluation, out)
    if evaluation.failures:
        raise typer.Exit(1)


def evaluation_notes(manifest: Manifest, on: EvaluationSubset) -> tuple[str, ...]:
    """Notes on the training of the model that a reader of the figures needs."""
    notes = []
    if manifest.validation is None:
        notes.append("Not validated: no label was spent on choosing among checkpoints; the last one was taken.")
    if manifest.provenance.transductive and on is EvaluationSubset.test:
        notes.append("Transductive: the network saw the test images, without their labels, in training.")
    if on is EvaluationSubset.all:
        notes.append("The dataset has no split, so whether the model has seen some of these scans is not known.")
    elif on is not EvaluationSubset.test:
        notes.append(f"These are {on.value} scans, not test scans.")
    return tuple(notes)


def parse_metrics(text: str | None) -> tuple[str, ...]:
    """Figures such as ``dice,f1,hd_mm``.

    Raises:
        InputError: There is no such figure, or one stands there twice.
    """
    if text is None:
        return DEFAULT_METRICS
    names = tuple(name.strip() for name in text.split(","))
    strange = [name for name in names if name not in HEADINGS]
    if strange:
        raise InputError(f"There is no metric {strange[0]!r}; choose of {', '.join(HEADINGS)}.")
    if len(set(names)) < len(names):
        raise InputError(f"--metrics names a figure twice: {text}.")
    return names


def print_evaluation(evaluation: Evaluation, console: Console, metrics: tuple[str, ...] = DEFAULT_METRICS) -> None:
    """Print the table, the notes, and the scans that failed with the reason."""
    table = evaluation.table(metrics)
    shown = Table(title=evaluation.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for number, heading in enumerate(table.header):
        shown.add_column(heading, justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    seconds = [row.seconds for row in evaluation.segment_rows(evaluation.segments[0]) if row.error is None]
    if seconds:
        console.print(f"{statistics.median(seconds):.2f} s per scan (median).", highlight=False)
    for note in evaluation.footnotes(metrics):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for case, sentence in evaluation.failures.items():
        console.print(f"failed: {case}: {sentence}", markup=False, highlight=False, soft_wrap=True, style="red")


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write ``scores.csv``, ``scores.json``, ``dice.png`` and ``hd95.png`` to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation.to_csv(out / "scores.csv")
    evaluation.to_json(out / "scores.json")
    save_picture(evaluation, out / "dice.png", "dice")
    save_picture(evaluation, out / "hd95.png", "hd95_mm")


def _with_progress(
    segment: SegmentFunction,
    dataset: Dataset,
    scans: tuple[str, ...],
    title: str,
    notes: tuple[str, ...],
    keep: Path | None,
) -> Evaluation:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Segmenting", total=len(scans))
        return judge(
            segment,
            dataset,
            scans,
            title=title,
            notes=notes,
            keep=keep,
            progress=lambda done, _, case: bar.update(task, completed=done, description=case),
        )
