"""Starting the server: verify the bundle, bind the port, then answer, all in one process.

One process, because there is one copy of each model in memory and requests are threads; a supervisor (the container
engine, systemd) starts it again if it dies. BentoML's own launcher would add a second process and write into the home
folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from semiseg.errors import InputError
from server.http.app import House
from server.http.keys import VARIABLE, Keys
from server.http.limits import Limits
from server.http.logs import keep_logs
from server.http.memory import share_arenas
from server.http.model import ModelSettings
from server.http.models import Models
from server.http.scratch import scratch_in
from server.http.state import JobFiles
from server.jobs.files import held

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a server listens and writes.

    Attributes:
        host: name or address to listen on.
        port: port to listen on; 0 takes a free one.
        state: the folder of /jobs; None turns them off.
        scratch: where uploads go, in a folder of its own; the system's temporary folder by default. With ``state`` they
            go there.
        origins: pages of other servers that may use it from a browser.
        open_to_all: answer everybody who reaches ``host``, although there are no keys.
    """

    host: str
    port: int
    state: Path | None = None
    scratch: Path | None = None
    origins: tuple[str, ...] = ()
    open_to_all: bool = False


def serve(settings: Sequence[ModelSettings], limits: Limits, keys: Keys, place: Place, announce: Announce) -> None:
    """Answer until told to stop (SIGTERM, SIGINT).

    Args:
        settings: the bundles and how to run them.
        limits: what is accepted.
        keys: who is answered.
        place: where it listens and writes.
        announce: told where the server listens, and when it is ready.

    Raises:
        BundleError, EngineError, InputError: a bundle or a setting cannot be used, or the port cannot be had. The port
            is bound only after the bundles were found good.
    """
    if not (keys.required or place.open_to_all or _is_loopback(place.host)):
        raise InputError(
            f"Whoever reaches {place.host} could use this server: give it keys (--keys FILE, or {VARIABLE} in the "
            "environment), listen on 127.0.0.1, or say --no-keys."
        )
    share_arenas()
    os.umask(0o077)  # scans and masks are nobody else's on this machine
    with contextlib.ExitStack() as stack:
        if place.state is not None:
            stack.enter_context(held(place.state))
            files = JobFiles.open(place.state)
            scratch = files.work
        else:
            files, scratch = None, stack.enter_context(scratch_in(place.scratch))
        _keep_everything_in(scratch)
        models = Models.open(settings)
        with _bound(place.host, place.port) as listener:
            announce(f"listening on {_url(listener)}, warming up {', '.join(models.by_name)}")
            _run(House.of(models, limits, scratch, files), keys, place.origins, listener, announce)
        if models.failure is not None:
            raise models.failure


def _keep_everything_in(scratch: Path) -> None:
    """One folder for all that is written, and no telemetry; the libraries read this when they are imported."""
    tempfile.tempdir = str(scratch)
    os.environ.setdefault("BENTOML_HOME", str(scratch / "bentoml"))
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # Otherwise ONNX Runtime's Linux builds report to their maker and keep a device id in the home folder; its own
    # disable_telemetry_events() comes too late for that.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _is_loopback(host: str) -> bool:
    try:
        found = {ip_address(one[4][0]) for one in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, ValueError):
        return True  # no address at all: binding it says so
    return all(one.is_loopback for one in found)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise InputError(f"{host} is no address of this machine ({error.strerror}); use --host 127.0.0.1.") from None
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"The server cannot listen on port {port} of {host} ({reason}); choose another with --port."
        ) from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run(house: House, keys: Keys, origins: Sequence[str], listener: socket.socket, announce: Announce) -> None:
    import uvicorn

    from server.http.protocol import CONNECTIONS, ImpatientProtocol
    from server.http.service import make_service

    def warm() -> None:
        if house.models.failure is None:
            announce(f"ready: POST a scan to {_url(listener)}/segment")
        else:
            server.should_exit = True

    application = make_service(house, keys, warm, origins=origins).to_asgi()
    keep_logs()  # after BentoML has made its loggers
    config = uvicorn.Config(
        application,
        http=ImpatientProtocol,
        limit_concurrency=CONNECTIONS,
        log_config=None,
        access_log=False,  # it holds whole paths
        server_header=False,
        timeout_graceful_shutdown=house.limits.stop_seconds,
    )
    server = uvicorn.Server(config)
    # uvicorn takes these signals while it runs and raises them again afterwards, when our own tidying is still to come.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
