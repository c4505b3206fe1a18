"""`semiseg predict`: segment one scan with a bundle, a training run, or a server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from semiseg.errors import InputError, SemisegError
from semiseg.inference.segmenter import SlidingWindowOptions

if TYPE_CHECKING:
    from semiseg.bundle.variant import Precision
    from semiseg.outputs.formats import OutputFormat
    from semiseg.predicting.segmentation_options import SegmentationOptions

app = typer.Typer(add_completion=False)


@app.command()
def predict(
    arguments: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE_OR_RUN] [SCAN]",
            help="The model (left out with --server) and the scan: a NIfTI, NRRD, MetaImage or MGH file, a folder or "
            "zip of a DICOM study (left out with --channel).",
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="File of the result: .nii.gz, .nii, .seg.nrrd, .nrrd, .dcm, .zip or .json; a folder for --input-list."
        ),
    ],
    input_list: Annotated[
        Path | None,
        typer.Option(help="A file with a scan's path on each line, in the place of SCAN; goes on where it stopped."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="With --input-list: a Ray cluster's address, `auto`, or `local` for all of this machine."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --cluster: how many scans at a time.")] = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a `semiseg serve`, such as http://127.0.0.1:3000.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SEMISEG_API_KEY", help="API key, where the server asks for one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model, for a server that has several.")] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH: where a channel is; once for each, in the place of SCAN.")
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            "--output-format",
            "--answer",
            help="Output format: nifti, nifti-labelmap, seg, seg-labelmap, seg-fractional, rtstruct, sr, overlay, "
            "json, seg-nrrd or nrrd; by default the suffix of --out decides.",
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(help="Series Instance UID, where the files hold several series; NAME=UID,... for channels."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            help="Refuse a scan that would have to be corrected (tilt, uneven slices, a contradictory header)."
        ),
    ] = False,
    aligned: Annotated[
        bool, typer.Option(help="The channels lie in one space although their files do not say so.")
    ] = False,
    window: Annotated[str | None, typer.Option(help="Sliding window such as 96x96x96; the model's own.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window covered by the next; the model's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows per call of the network.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; all by default.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 or int8; by default the fastest that was proved and runs here.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Run all windows, also if the model has a coarse pass that skips background.")
    ] = False,
) -> None:
    """Segment one scan and write the mask on the scan's own grid."""
    from cli.models import parse_window
    from semiseg.bundle.variant import parse_precision
    from semiseg.outputs.format_selection import format_from_path
    from semiseg.predicting.segmentation_options import SegmentationOptions

    if input_list is not None:
        if server or channel or series or strict or aligned or len(arguments or []) != 1:
            raise InputError(
                "With --input-list name a model, and neither a server nor what holds for one scan only: "
                "semiseg predict BUNDLE --input-list FILE --out FOLDER."
            )
        settings = SlidingWindowOptions(parse_window(window), overlap, batch, full)
        many = BatchRequest(input_list, out, answer or "nifti", cluster, workers)
        _predict_list((arguments or [])[0], many, settings, threads, parse_precision(precision))
        return
    if cluster or workers:
        raise InputError("--cluster and --workers are for the scans of an --input-list.")
    output_format = format_from_path(out, answer)
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent} to write {out.name} into.")
    arguments, channels = arguments or [], _channels(channel or [])
    needed = [] if server else ["BUNDLE"]
    words = ["semiseg predict", *needed, *([] if channels else ["SCAN"]), *(["--server URL"] if server else [])]
    if len(arguments) != len(needed) + (not channels):
        told = "With --server the model is the server's" if server else "Name a model and a scan"
        raise InputError(f"{told}: {' '.join(words)} --out MASK.")
    scan = None if channels else arguments[-1]
    options = SegmentationOptions(
        model=model,
        output_formats=(output_format.name,),
        series=series,
        strict=strict,
        aligned=aligned,
        full=full,
    )
    asked = PredictionRequest(scan, channels, options, out)
    if server is None:
        if model is not None:
            raise InputError("--model chooses among a server's models; without --server the model is the bundle.")
        settings = SlidingWindowOptions(parse_window(window), overlap, batch, full)
        _predict_locally(arguments[0], asked, settings, threads, parse_precision(precision))
        return
    if (window, overlap, batch, threads, precision) != (None, None, 1, None, None):
        raise InputError(
            "--window, --overlap, --batch, --threads and --precision are the server's own: give them to "
            "`semiseg serve`."
        )
    _predict_on_server(server, key, asked)


@dataclass(frozen=True)
class PredictionRequest:
    """A scan to segment.

    Attributes:
        scan: Files of the scan; None where each channel has files of its own.
        channels: Files of each channel, by its name.
        options: Options, with one output format.
        out: File of the result.
    """

    scan: Path | None
    channels: dict[str, Path]
    options: SegmentationOptions
    out: Path

    @property
    def output_format(self) -> OutputFormat:
        """The output format."""
        return self.options.formats[0]

    @property
    def files(self) -> Path | dict[str, Path]:
        """The scan, or the files of each channel."""
        return self.channels if self.scan is None else self.scan


def _channels(given: list[str]) -> dict[str, Path]:
    """Parse ``["T1=scans/t1", ...]`` into a mapping from channel to path."""
    table: dict[str, Path] = {}
    for part in given:
        name, equals, path = part.partition("=")
        if not equals or not name or not path or name in table:
            raise InputError(f"--channel is written NAME=PATH, once for each channel; '{part}' is not.")
        table[name] = Path(path)
    return table


def _predict_locally(
    model: Path,
    asked: PredictionRequest,
    settings: SlidingWindowOptions,
    threads: int | None,
    precision: Precision | None,
) -> None:
    from cli.models import open_model

    opened = open_model(model, settings, threads=threads, precision=precision)
    with _progress_bar() as told:

        def show(done: int, total: int) -> None:
            told(done, total, "segmenting")

        prediction = opened.predict_files(asked.files, asked.output_format, asked.options.read_options, show)
        prediction.write(asked.out, asked.output_format)
    counts = prediction.timing.counts
    windows = counts.description if counts is not None and opened.manifest.coarse_pass is not None else None
    _print_result(asked.out, prediction.volumes, prediction.timing.seconds, prediction.warnings, windows)


@dataclass(frozen=True)
class BatchRequest:
    """A list of scans to segment: its file, the folder of the results, their format, and the workers."""

    file: Path
    out: Path
    output_format: str
    cluster: str | None
    workers: int | None


def _predict_list(
    model: Path, asked: BatchRequest, settings: SlidingWindowOptions, threads: int | None, precision: Precision | None
) -> None:
    from cli.models import open_model
    from semiseg.outputs.format_selection import require_format
    from semiseg.predicting.scan_list import (
        RESULTS_FILE,
        ResultLog,
        process_pending,
        read_scan_list,
        segment_sequentially,
    )

    output_format = require_format(asked.output_format).name
    opening = partial(open_model, model.absolute(), settings, threads=threads, precision=precision)
    items = read_scan_list(asked.file.absolute(), asked.out.absolute(), output_format)
    opened = opening()
    if opened.identity.sha256 is None:
        raise InputError(f"{model} is a training run, which may still change; export it for a whole list.")
    results = ResultLog(asked.out)
    if asked.cluster is None:
        segment = partial(segment_sequentially, opened)
    else:
        from semiseg.predicting.ray_cluster import segment_on_cluster

        address = None if asked.cluster == "local" else asked.cluster
        segment = partial(segment_on_cluster, opening, address=address, workers=asked.workers, threads=threads or 1)
    with _progress_bar() as told:

        def show(ended: int, total: int, outcome: dict[str, Any]) -> None:
            told(ended, total, "scans")
            if outcome["state"] == "failed":
                typer.echo(f"{outcome['scan']}: {outcome['error']}", err=True)

        done, failed = process_pending(items, results, opened.identity.sha256, segment, show)
    typer.echo(
        f"{done} of {len(items)} scans are done, {failed} failed; {asked.out / RESULTS_FILE} says what became of each."
    )
    if failed:
        raise typer.Exit(1)


def _predict_on_server(url: str, key: str | None, asked: PredictionRequest) -> None:
    import gzip

    from semiseg.client import Client, JobStatus
    from semiseg.system.durable_files import replace_file

    def write(body: bytes) -> None:
        replace_file(asked.out, gzip.decompress(body) if asked.out.name.lower().endswith(".nii") else body)

    name, chosen = asked.output_format.name, asked.options
    options: dict[str, Any] = {"options": chosen.read_options, "model": chosen.model, "full": chosen.full}
    with Client(url, key=key) as client:
        if client.keeps_jobs():
            with _progress_bar() as told:
                told(0, 0, "sending")
                job = client.submit(asked.files, name, **options)

                def show(now: JobStatus) -> None:
                    words = f"waiting, {now.ahead} before it" if now.state == "waiting" else now.state
                    told(now.windows_done, now.windows_total, words)

                try:
                    client.wait(job.id, show)
                except KeyboardInterrupt:
                    client.stop(job.id)
                    raise
            try:
                answer = client.result(job.id)
                write(answer.body)
            finally:
                with contextlib.suppress(SemisegError):  # the server must not keep anything
                    client.forget(job.id)
        else:
            answer = client.ask(asked.files, name, **options)
            write(answer.body)
    _print_result(asked.out, answer.millilitres, answer.seconds, [text for _, text in answer.remarks])


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error, if that is a terminal; called with windows done, all windows, and a label."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def told(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total or None, description=words)

        yield told


def _print_result(
    out: Path,
    millilitres: dict[str, float],
    seconds: dict[str, float],
    remarks: list[str],
    windows: str | None = None,
) -> None:
    table = Table("segment", "ml", title="RESEARCH USE ONLY", title_style="bold red")
    table.columns[1].justify = "right"
    for name, ml in millilitres.items():
        table.add_row(name, f"{ml:.3f}")
    console = Console()
    console.print(table)
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True, highlight=False)
    if windows is not None:
        console.print(windows, soft_wrap=True, highlight=False)
    total = sum(seconds.values())
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items() if value >= 0.005)
    console.print(f"{total:.2f} s" + (f" ({stages})" if stages else ""), highlight=False)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)
