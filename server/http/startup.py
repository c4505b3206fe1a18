"""Start of the server: verifies the bundles, binds the port, and serves requests, all in one process.

The server is one process, so that memory holds one copy of each model; requests run in threads. A supervisor (the
container engine, systemd) has to restart it after a crash. BentoML's own launcher would add a second process and write
into the home folder.
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
    """Addresses and folders of a server.

    Attributes:
        host: Name or address to listen on.
        port: Port to listen on; 0 takes a free one.
        state: State folder of /jobs; None turns jobs off.
        scratch: Parent of the folder for uploads; None is the system's temporary folder. With ``state``, uploads are
            written there instead.
        access: Allowed host names and origins, and trusted proxies.
        open_to_all: True if the server may accept all requests that reach ``host`` although it has no keys.
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
    """Serve requests until a signal stops the server (SIGTERM, SIGINT; on Windows also Ctrl+Break).

    Args:
        settings: Bundles and how to run them.
        limits: Limits of requests.
        keys: API keys of the users.
        options: Addresses and folders of the server.
        announce: Function that is called with a message when the server listens, and when it is ready.

    Raises:
        BundleError, EngineError, InputError: A bundle, a setting or the port cannot be used. The port is bound only
            after the bundles were verified.
    """
    if not (keys.required or options.open_to_all or is_loopback(options.host)):
        raise InputError(
            f"Anyone who can reach {options.host} could use this server: set API keys (--keys FILE, or {KEYS_ENV} in "
            "the environment), listen on 127.0.0.1, or allow it with --no-keys."
        )
    access = replace(options.access, bind_host=options.host)
    access.browser_guard(keys=keys.required)  # reports invalid names before models are opened
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
    configure_logging()  # after BentoML has created its loggers
    server = make_uvicorn_server(
        application,
        stop_seconds=context.limits.stop_seconds,
        per_address=context.limits.connections_per_address,
        proxies=access.trusted_proxies(),
    )
    # uvicorn handles these signals while it runs and raises them again afterwards, before our own clean-up.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
