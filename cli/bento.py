"""`semiseg bento`: build a Bento that contains a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def bento(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder that `semiseg export` made.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write it to this file, NAME.bento, for `bentoml import` elsewhere.")
    ] = None,
) -> None:
    """Build a Bento that contains the bundle, for `bentoml serve`."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"  # read when BentoML is imported
    from server.http.bento import build_bento

    built = build_bento(bundle)
    typer.echo(f"{built.tag}: start it with")
    typer.echo(f"  BENTOML_DO_NOT_TRACK=True SEMISEG_API_KEYS='NAME KEY' bentoml serve {built.tag}")
    typer.echo(f"BentoML's own way to an image, untried with this Bento:\n  bentoml containerize {built.tag}")
    if out is not None:
        typer.echo(f"wrote {built.export(str(out))}")
