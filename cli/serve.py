"""`semiseg serve`: answer POST /segment over HTTP with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder that `semiseg export` made.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 3000,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; all by default.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Scans segmented at the same time.")] = 2,
    waiting: Annotated[int, typer.Option(min=0, help="Further requests that may upload or wait their turn.")] = 16,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Largest upload, in MB of 2^20 bytes.")] = 2048,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest time for one request, in seconds.")] = 3600,
    idle_timeout: Annotated[float, typer.Option(min=0.1, help="Longest standstill of an upload, in seconds.")] = 60,
    window: Annotated[str | None, typer.Option(help="Sliding window such as 96x96x96; the bundle's own.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window covered by the next; the bundle's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows per call of the network.")] = 1,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 or int8; by default the fastest that was proved and runs here.")
    ] = None,
) -> None:
    """Answer POST /segment over HTTP with a bundle until told to stop. The page / describes the interface."""
    from cli.models import parse_precision, parse_window
    from server.http.limits import MEGABYTE, Limits
    from server.http.model import ModelSettings
    from server.http.start import serve as run

    settings = ModelSettings(
        bundle=bundle,
        threads=threads,
        window=parse_window(window),
        overlap=overlap,
        batch=batch,
        precision=parse_precision(precision),
    )
    limits = Limits(
        upload_bytes=int(max_upload_mb * MEGABYTE),
        parallel=parallel,
        waiting=waiting,
        idle_seconds=idle_timeout,
        request_seconds=timeout,
    )
    run(settings, limits, host=host, port=port, announce=lambda sentence: typer.echo(f"semiseg {sentence}"))
