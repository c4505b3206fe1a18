"""Options that all commands with a server share, with one meaning and one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.http.access_options import PROXIES_ENV

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network; all by default.")]
Waiting = Annotated[int, typer.Option(min=0, help="Further requests that may upload or wait their turn.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="File of API keys: a line for each, NAME KEY. Without it, SEMISEG_API_KEYS=NAME KEY,..."),
]
NoKeys = Annotated[
    bool, typer.Option("--no-keys", help="Answer everybody who reaches --host, although there are no keys.")
]
Origins = Annotated[
    list[str] | None, typer.Option(help="A page's origin, such as https://viewer.example, that may use the server.")
]
TrustedProxies = Annotated[
    list[str] | None,
    typer.Option(
        envvar=PROXIES_ENV,
        help="Address or network of a proxy in front, whose X-Forwarded-For, -Host and -Prefix are believed.",
    ),
]
MinFreeMb = Annotated[float, typer.Option(min=0, help="Free space that an upload must leave, in MB.")]
MaxUploadMb = Annotated[float, typer.Option(min=0.001, help="Largest upload, in MB of 2^20 bytes.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Longest time for one request, in seconds.")]
IdleTimeout = Annotated[float, typer.Option(min=0.1, help="Longest standstill of an upload, in seconds.")]
