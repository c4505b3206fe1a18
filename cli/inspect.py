"""`semiseg inspect`: report the content of a folder or file, series by series, how it would be read, and faults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from semiseg.errors import InputError, VolumeError
from semiseg.volumes.volume import Volume

app = typer.Typer(add_completion=False)

_SHOWN = 12  # skipped files listed, and rows of the picture


@app.command()
def inspect_files(
    path: Annotated[Path, typer.Argument(help="A folder, a DICOM, NIfTI or other file of a scan, a zip.")],
    model: Annotated[Path | None, typer.Option(help="A bundle or run: which series would be its channels.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write a contact sheet of what can be read: a .png.")] = None,
) -> None:
    """Report the content of PATH and how semiseg would read it. Nothing is written unless --picture is given."""
    from cli.models import read_model_manifest
    from semiseg.outputs.overlay import series_sheet
    from semiseg.volumes.inspection import inspect_files
    from semiseg.volumes.scan import files_in, open_scan
    from semiseg.volumes.series_rules import SeriesRule

    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"{picture}: the picture is a .png.")
    rules = {"scan": SeriesRule()}
    if model is not None:
        rules = read_model_manifest(model).rules
    console = Console(highlight=False, soft_wrap=True)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False)

    shown: list[tuple[str, Volume]] = []
    with files_in(path) as files:
        things, left_out = inspect_files(files)
        for number, thing in enumerate(things, start=1):
            say(f"{number}. {thing.name}", "bold")
            say(f"   {', '.join(thing.facts)}")
            say(f"   {thing.outcome}", "red" if thing.outcome.startswith("Refused") else None)
            if thing.volume is not None and picture is not None and len(shown) < _SHOWN:
                shown.append((f"{number}. {thing.title}"[:30], thing.volume))
    for one in left_out[:_SHOWN]:
        say(f"{'damaged' if one.damaged else 'left out'}  {one.sentence}")
    if len(left_out) > _SHOWN:
        say(f"... and {len(left_out) - _SHOWN} more files that are nothing to read.")
    try:
        scan = open_scan(path, rules)
    except VolumeError as error:
        say(f"As one scan it would be refused: {error}", "bold")
    else:
        taken = "; ".join(f"{v.channel}: {v.description or v.uid} ({v.reason})" for v in scan.decisions if v.channel)
        say(f"As one scan it would be read. {taken}".rstrip(), "bold")
        for remark in scan.warnings:
            say(f"  note: {remark.text}")
    if picture is not None:
        if not shown:
            raise InputError(f"{path}: nothing in it can be read, so there is nothing to draw.")
        series_sheet(picture, shown, f"{path.name}: {len(shown)} of what can be read.")
        say(f"wrote {picture}")
