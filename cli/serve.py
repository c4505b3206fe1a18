"""`semiseg serve`: segment scans over HTTP with one bundle or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.serving_options import (
    Host,
    IdleTimeout,
    KeyFile,
    MaxUploadMb,
    MinFreeMb,
    NoKeys,
    Origins,
    Port,
    Threads,
    Timeout,
    TrustedProxies,
    Waiting,
)
from semiseg.errors import InputError
from server.http.access_options import HOSTS_ENV, PREFIX_ENV, AccessOptions

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    bundles: Annotated[
        list[Path], typer.Argument(help="A bundle folder that `semiseg export` made; or several, chosen by name.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 3000,
    threads: Threads = None,
    parallel: Annotated[int, typer.Option(min=1, help="Scans segmented at the same time.")] = 2,
    waiting: Waiting = 16,
    per_client: Annotated[int, typer.Option(min=1, help="Requests of one client at the same time.")] = 16,
    keys: KeyFile = None,
    no_keys: NoKeys = False,
    origin: Origins = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            envvar=HOSTS_ENV,
            help="Name by which the server may be called besides its addresses, localhost and --host, such as "
            "scans.example.org; *.example.org for all below one, * for every name.",
        ),
    ] = None,
    proxy: TrustedProxies = None,
    path_prefix: Annotated[
        str, typer.Option(envvar=PREFIX_ENV, help="Path below which a proxy shows the server: /semiseg.")
    ] = "",
    per_address: Annotated[int, typer.Option(min=1, help="Open connections of one address that is no proxy's.")] = 500,
    state: Annotated[
        Path | None, typer.Option(help="Folder for /jobs: their queue, uploads and results. Without it they are off.")
    ] = None,
    keep_hours: Annotated[float, typer.Option(min=0.0001, help="Time for which a job and its result are kept.")] = 24,
    queued: Annotated[int, typer.Option(min=1, help="Jobs that may wait.")] = 100,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for uploads; the system's temporary folder, or that of --state.")
    ] = None,
    min_free_mb: MinFreeMb = 1024,
    max_upload_mb: MaxUploadMb = 2048,
    timeout: Timeout = 3600,
    idle_timeout: IdleTimeout = 60,
    window: Annotated[str | None, typer.Option(help="Sliding window such as 96x96x96; the bundle's own.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window covered by the next; the bundle's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows per call of the network.")] = 1,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 or int8; by default the fastest that was proved and runs here.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Run all windows of every scan, also if a bundle has a coarse pass.")
    ] = False,
) -> None:
    """Serve until stopped. The page at / accepts scans and describes the interface."""
    from cli.models import parse_window
    from semiseg.bundle.variant import parse_precision
    from server.http.limits import MEGABYTE, Limits
    from server.http.model import ModelSettings
    from server.http.startup import ServeOptions
    from server.http.startup import serve as run
    from server.keys import ApiKeys

    if state is not None and scratch is not None:
        raise InputError("With --state uploads go into its folder; leave out --scratch.")
    settings = [
        ModelSettings(
            bundle=bundle,
            threads=threads,
            window=parse_window(window),
            overlap=overlap,
            batch=batch,
            precision=parse_precision(precision),
            full=full,
        )
        for bundle in bundles
    ]
    limits = Limits(
        upload_bytes=int(max_upload_mb * MEGABYTE),
        parallel=parallel,
        waiting=waiting,
        per_client=per_client,
        connections_per_address=per_address,
        queued=queued,
        disk_bytes=int(min_free_mb * MEGABYTE),
        keep_seconds=keep_hours * 3600,
        idle_seconds=idle_timeout,
        request_seconds=timeout,
    )
    access = AccessOptions(
        hosts=tuple(allowed_host or ()), origins=tuple(origin or ()), proxies=tuple(proxy or ()), prefix=path_prefix
    )
    options = ServeOptions(host, port, state, scratch, access, open_to_all=no_keys)
    run(settings, limits, ApiKeys(keys), options, announce=lambda sentence: typer.echo(f"semiseg {sentence}"))
