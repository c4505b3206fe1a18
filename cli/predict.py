"""`semiseg predict`: segment one scan with a bundle, a training run, or a server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from semiseg.errors import InputError
from semiseg.inference.segmenter import Settings

app = typer.Typer(add_completion=False)


@app.command()
def predict(
    arguments: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BUNDLE_OR_RUN] SCAN",
            help="The model (left out with --server) and the scan: a NIfTI file, a folder or zip of a DICOM series.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the mask goes: .nii.gz, .nii, .dcm (DICOM SEG) or .json.")],
    server: Annotated[
        str | None, typer.Option(help="Address of a `semiseg serve`, such as http://127.0.0.1:3000.")
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID, where the files hold several series.")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Refuse a DICOM series that would have to be corrected (tilt, uneven slices, copies).")
    ] = False,
    window: Annotated[str | None, typer.Option(help="Sliding window such as 96x96x96; the model's own.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window covered by the next; the model's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows per call of the network.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; all by default.")] = None,
) -> None:
    """Segment one scan and write the mask on the scan's own grid."""
    from cli.models import parse_window
    from semiseg.outputs.answer import kind_of_file

    kind_of_file(out)
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent} to write {out.name} into.")
    if server is None:
        if len(arguments) != 2:
            raise InputError("Name a model and a scan: semiseg predict BUNDLE SCAN --out MASK.")
        model, scan = arguments
        wanted = Wanted(out, series, strict)
        _locally(model, scan, wanted, Settings(parse_window(window), overlap, batch), threads)
        return
    if len(arguments) != 1:
        raise InputError("With --server the model is the server's: semiseg predict SCAN --server URL --out MASK.")
    if (window, overlap, batch, threads) != (None, None, 1, None):
        raise InputError(
            "--window, --overlap, --batch and --threads are the server's own: give them to `semiseg serve`."
        )
    _by_server(server, arguments[0], Wanted(out, series, strict))


@dataclass(frozen=True)
class Wanted:
    """What was asked for: the file to write, the series to take, and whether to refuse what is not regular."""

    out: Path
    series: str | None
    strict: bool


def _locally(model: Path, scan: Path, wanted: Wanted, settings: Settings, threads: int | None) -> None:
    from cli.models import open_model
    from semiseg.inference.segmenter import Timing
    from semiseg.outputs.answer import chosen_kind, kind_of_file, write_answer
    from semiseg.outputs.report import Report
    from semiseg.volumes.scan import open_scan

    opened = open_model(model, settings, threads=threads)
    timing = Timing()
    clock = time.perf_counter()
    source = open_scan(scan, opened.manifest.channel_names, series_uid=wanted.series, strict=wanted.strict)
    kind = chosen_kind(kind_of_file(wanted.out), source.series)
    timing.add("reading", clock)
    segmentation = opened.segmenter.segment(source.channels, timing=timing)
    report = Report.of(segmentation, opened.identity, source, windows=timing.windows, seconds=timing.seconds)
    clock = time.perf_counter()
    write_answer(wanted.out, kind, segmentation, report, series=source.series, source=scan)
    timing.add("writing", clock)
    millilitres = {segment.name: segment.ml for segment in report.segments}
    _tell(wanted.out, millilitres, timing.seconds, [remark.text for remark in report.remarks])


def _by_server(url: str, scan: Path, wanted: Wanted) -> None:
    import gzip

    from semiseg.bundle.bundle import replace_file
    from semiseg.client import Client
    from semiseg.outputs.answer import kind_of_file

    with Client(url) as client:
        answer = client.ask(scan, kind_of_file(wanted.out), series=wanted.series, strict=wanted.strict)
    body = gzip.decompress(answer.body) if wanted.out.name.lower().endswith(".nii") else answer.body
    replace_file(wanted.out, body)
    _tell(wanted.out, answer.millilitres, answer.seconds, [text for _, text in answer.remarks])


def _tell(out: Path, millilitres: dict[str, float], seconds: dict[str, float], remarks: list[str]) -> None:
    table = Table("segment", "ml", title="RESEARCH USE ONLY", title_style="bold red")
    table.columns[1].justify = "right"
    for name, ml in millilitres.items():
        table.add_row(name, f"{ml:.3f}")
    console = Console()
    console.print(table)
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True, highlight=False)
    total = sum(seconds.values())
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items() if value >= 0.005)
    console.print(f"{total:.2f} s" + (f" ({stages})" if stages else ""), highlight=False)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)
