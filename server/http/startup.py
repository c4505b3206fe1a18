"""Starting the server: verify the bundle, bind the port, then answer, all in one process.

One process, because there is one copy of each model in memory and requests are threads; a supervisor (the container
engine, systemd) starts it again if it dies. BentoML's own launcher would add a second process and write into the home
folder.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.signals import STOP_SIGNALS
from server.http.access_options import AccessOptions
from server.http.app import ServerContext
from server.http.limits import Limits
from server.http.model import ModelSettings
from server.http.models import ServedModels
from server.http.process import prepare_process
from server.http_listener import bind_socket, is_loopback, listener_url, make_uvicorn_server
from server.keys import KEYS_ENV, ApiKeys
from server.logs import configure_logging

Announce = Callable[[str], None]
BIND_HINTS = {"host_hint": "use --host 127.0.0.1", "port_hint": "choose another with --port"}


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens and writes.

    Attributes:
        host: name or address to listen on.
        port: port to listen on; 0 takes a free one.
        state: the folder of /jobs; None turns them off.
        scratch: where uploads go, in a folder of its own; the system's temporary folder by default. With ``state`` they
            go there.
        access: The way to it: further names, pages of other servers, proxies.
        open_to_all: answer everybody who reaches ``host``, although there are no keys.
    """

    host: str
    port: int
    state: Path | None = None
    scratch: Path | None = None
    access: AccessOptions = field(default_factory=AccessOptions)
    open_to_all: bool = False


def serve(
    settings: Sequence[ModelSettings], limits: Limits, keys: ApiKeys, options: ServeOptions, announce: Announce
) -> None:
    """Answer until told to stop (SIGTERM, SIGINT; on Windows also Ctrl+Break).

    Args:
        settings: the bundles and how to run them.
        limits: what is accepted.
        keys: who is answered.
        options: where it listens and writes.
        announce: told where the server listens, and when it is ready.

    Raises:
        BundleError, EngineError, InputError: a bundle or a setting cannot be used, or the port cannot be had. The port
            is bound only after the bundles were found good.
    """
    if not (keys.required or options.open_to_all or is_loopback(options.host)):
        raise InputError(
            f"Whoever reaches {options.host} could use this server: give it keys (--keys FILE, or {KEYS_ENV} in the "
            "environment), listen on 127.0.0.1, or say --no-keys."
        )
    access = replace(options.access, bind_host=options.host)
    access.browser_guard(keys=keys.required)  # what is wrong with the names is said before models are opened
    access.trusted_proxies()
    with prepare_process(options.state, options.scratch) as (folder, job_store):
        models = ServedModels.open(settings)
        with bind_socket(options.host, options.port, **BIND_HINTS) as listener:
            announce(f"listening on {listener_url(listener)}, warming up {', '.join(models.by_name)}")
            _run(ServerContext.create(models, limits, folder, job_store), keys, access, listener, announce)
        if models.failure is not None:
            raise models.failure


def _run(
    context: ServerContext, keys: ApiKeys, access: AccessOptions, listener: socket.socket, announce: Announce
) -> None:
    from server.http.service import make_service

    def warm() -> None:
        if context.models.failure is None:
            announce(f"ready: POST a scan to {listener_url(listener)}/segment")
        else:
            server.should_exit = True

    application = make_service(context, keys, warm, access=access).to_asgi()
    configure_logging()  # after BentoML has made its loggers
    server = make_uvicorn_server(
        application,
        stop_seconds=context.limits.stop_seconds,
        per_address=context.limits.connections_per_address,
        proxies=access.trusted_proxies(),
    )
    # uvicorn takes these signals while it runs and raises them again afterwards, when our own tidying is still to come.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
