"""`semiseg collect`: convert DICOM or nnU-Net folders into a dataset."""

from __future__ import annotations

import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from semiseg.collection import (
    CollectionResult,
    CollectOptions,
    PartialLabels,
    ReportEntry,
    check_destination,
    collect,
    count_entries,
    parse_labels,
)
from semiseg.errors import InputError, SemisegError

app = typer.Typer(add_completion=False)
_SHOWN = 10  # lines of one kind on the terminal; the report has them all


class OverlapPolicy(StrEnum):
    """Rule for a voxel that belongs to two structures."""

    refuse = "refuse"
    later = "later"
    earlier = "earlier"
    regions = "regions"


@app.command(name="collect")
def command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of DICOM files, or a folder as nnU-Net has it.")
    ],
    out: Annotated[Path, typer.Option(help="The dataset folder to make.", metavar="DATA")],
    labels: Annotated[
        str | None, typer.Option(help="Structures and their label values, NAME=1,OTHER=2; else all, sorted by name.")
    ] = None,
    matches: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns scan,label: a series UID, folder or volume; a label file."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            help="Table that names the patient and study of each case; DATA-mapping.csv beside DATA by default."
        ),
    ] = None,
    overlap: Annotated[
        OverlapPolicy,
        typer.Option(
            help="Rule for overlapping structures: refuse the label, the later or earlier value wins, or regions."
        ),
    ] = OverlapPolicy.refuse,
    modality: Annotated[
        list[str] | None, typer.Option(help="Take series of this modality only; may be repeated.")
    ] = None,
    series: Annotated[
        list[str] | None, typer.Option(help="Take series whose description fits this pattern ('*portal*') only.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Several series a case: T1=PATTERN,T2=PATTERN, one series a study for each.")
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Scans are outlined on some slices only: ignore slices without an outline in training."
        ),
    ] = False,
    marker: Annotated[
        str | None,
        typer.Option(help="With --partial: name of a structure that marks slices as outlined that show no organ."),
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            help="DICOMweb address of an archive: download series of --modality into SRC first, then collect."
        ),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="With --archive: earliest date of a study.")
    ] = None,
    token: Annotated[
        Path | None, typer.Option(help="With --archive: file whose content is sent to it as bearer token.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the scans to the dataset that DATA is.")] = False,
) -> None:
    """Turn DICOM series and their outlines, or an nnU-Net folder, into a dataset without patients' names."""
    if marker and not partial:
        raise InputError("--marker is for scans that are outlined on some slices only; add --partial.")
    options = CollectOptions(
        labels=parse_labels(labels) if labels else None,
        matches=matches,
        overlap=overlap.value,
        modalities=tuple(modality or ()),
        descriptions=tuple(series or ()),
        channels=_channels(channels) if channels else {},
        partial=PartialLabels(marker or "") if partial else None,
    )
    if archive is None and (since or token):
        raise InputError("--since and --token are for an archive; name it with --archive.")
    signal.signal(signal.SIGTERM, _exit_on_signal)  # so that a terminated run removes its working folder
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Looking at files", total=None)

        def show(what: str, done: int, of: int | None) -> None:
            bar.update(task, description=what, completed=done, total=of)

        failures: tuple[str, ...] = ()
        if archive is not None:
            check_destination(source, out, mapping=mapping, add=add)
            failures = _download(archive, options, since, token, source, show, bar.console)
        collected = collect(source, out, options, mapping=mapping, add=add, progress=show)
    _show(collected, out, Console())
    if failures:
        raise SemisegError(
            f"{len(failures)} series could not be downloaded, for the reasons above; the same command with --add tries "
            "them again."
        )
    found = count_entries(collected.entries)
    refused = sum(found.get(f"refused {what}", 0) for what in ("label", "structure"))
    if refused and not any(found.get(f"{status} scan", 0) for status in ("labelled", "already there")):
        raise SemisegError(f"Labels were found, and none could be used: {refused} were refused, for the reasons above.")


def _download(
    archive: str,
    options: CollectOptions,
    since: datetime | None,
    token: Path | None,
    source: Path,
    show: Callable[[str, int, int | None], None],
    console: Console,
) -> tuple[str, ...]:
    """Download the selected series of an archive into the source folder; a sentence for each that could not be."""
    from server.gateway.series_download import ArchiveQuery, download_series

    day = None if since is None else since.date()
    query = ArchiveQuery(archive.rstrip("/"), options.modalities, options.descriptions, day, token)
    downloaded = download_series(query, source, show)
    for sentence in downloaded.failures:
        console.print(sentence, style="red", markup=False, soft_wrap=True)
    console.print(f"{downloaded.new} series downloaded into {source}, {downloaded.there} were there.")
    return downloaded.failures


def _channels(text: str) -> dict[str, str]:
    """Parse ``"T1=*t1*,FLAIR=*flair*"`` into a mapping from channel to pattern."""
    table: dict[str, str] = {}
    for part in text.split(","):
        name, equals, pattern = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not pattern or name in table:
            raise InputError(f"--channels is written NAME=PATTERN,OTHER=PATTERN with different names; '{part}' is not.")
        table[name] = pattern
    return table


def _exit_on_signal(number: int, frame: Any) -> None:
    del frame
    sys.exit(128 + number)


def _show(collected: CollectionResult, out: Path, console: Console) -> None:
    found = count_entries(collected.entries)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    labelled, unlabelled = found.get("labelled scan", 0), found.get("unlabelled scan", 0)
    there = found.get("already there scan", 0)
    say(
        f"{out}: {labelled} labelled and {unlabelled} unlabelled scans collected"
        + (f", {there} were there." if there else ".")
    )
    titles = {
        ("refused", "scan"): "Scans refused",
        ("refused", "label"): "Labels refused",
        ("refused", "structure"): "Structures refused",
        ("refused", "file"): "Files refused",
        ("note", "dataset"): "Worth knowing",
        ("note", "scan"): "Scans taken with a correction",
        ("note", "label"): "Labels, and how they were read",
        ("note", "structure"): "Worth knowing of labels",
        ("note", "patient"): "Patients with several scans",
        ("left out", "scan"): "Scans left out",
        ("left out", "label"): "Labels left out",
        ("left out", "structure"): "Structures left out",
    }
    for (status, what), title in titles.items():
        chosen = [line for line in collected.entries if (line.status, line.what) == (status, what)]
        if not chosen:
            continue
        say(f"\n{title}: {len(chosen)}", "bold red" if status == "refused" else "bold")
        for line in chosen[:_SHOWN]:
            say("  " + ": ".join(part for part in (line.case, line.source, line.reason) if part))
        if len(chosen) > _SHOWN:
            say(f"  ... and {len(chosen) - _SHOWN} more, in the report.")
    _show_litter(collected.entries, say)
    known = f"; {collected.known} scans kept the ids they had" if collected.known else ""
    say(f"\nWhose scans they are: {collected.mapping} (it names patients: keep it, apart from the dataset{known}).")
    say(f"Report, with the same care: {collected.report[0]} and {collected.report[1].suffix[1:].upper()} beside it.")
    say(f"\nNext: semiseg data check {out}")


def _show_litter(lines: tuple[ReportEntry, ...], say: Any) -> None:
    reasons: dict[str, int] = defaultdict(int)
    for line in lines:
        if (line.status, line.what) == ("left out", "file"):
            reasons[
                "the same object as another" if line.reason.startswith("The same object") else line.reason[:-1]
            ] += 1
    if reasons:
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        say(f"\nFiles left out: {told}.")
