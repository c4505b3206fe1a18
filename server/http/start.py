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
from server.http.app import House
from server.http.front import Front
from server.http.limits import Limits
from server.http.model import ModelSettings
from server.http.models import Models
from server.http.process import prepared
from server.keys import VARIABLE, Keys
from server.listening import bound, is_loopback, url_of, uvicorn_of
from server.logs import keep_logs

Announce = Callable[[str], None]
REMEDIES = {"other_host": "use --host 127.0.0.1", "other_port": "choose another with --port"}


@dataclass(frozen=True)
class Place:
    """Where a server listens and writes.

    Attributes:
        host: name or address to listen on.
        port: port to listen on; 0 takes a free one.
        state: the folder of /jobs; None turns them off.
        scratch: where uploads go, in a folder of its own; the system's temporary folder by default. With ``state`` they
            go there.
        front: The way to it: further names, pages of other servers, proxies.
        open_to_all: answer everybody who reaches ``host``, although there are no keys.
    """

    host: str
    port: int
    state: Path | None = None
    scratch: Path | None = None
    front: Front = field(default_factory=Front)
    open_to_all: bool = False


def serve(settings: Sequence[ModelSettings], limits: Limits, keys: Keys, place: Place, announce: Announce) -> None:
    """Answer until told to stop (SIGTERM, SIGINT; on Windows also Ctrl+Break).

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
    if not (keys.required or place.open_to_all or is_loopback(place.host)):
        raise InputError(
            f"Whoever reaches {place.host} could use this server: give it keys (--keys FILE, or {VARIABLE} in the "
            "environment), listen on 127.0.0.1, or say --no-keys."
        )
    front = replace(place.front, bound=place.host)
    front.guard(keys=keys.required)  # what is wrong with the names is said before models are opened
    front.trusted()
    with prepared(place.state, place.scratch) as (folder, files):
        models = Models.open(settings)
        with bound(place.host, place.port, **REMEDIES) as listener:
            announce(f"listening on {url_of(listener)}, warming up {', '.join(models.by_name)}")
            _run(House.of(models, limits, folder, files), keys, front, listener, announce)
        if models.failure is not None:
            raise models.failure


def _run(house: House, keys: Keys, front: Front, listener: socket.socket, announce: Announce) -> None:
    from server.http.service import make_service

    def warm() -> None:
        if house.models.failure is None:
            announce(f"ready: POST a scan to {url_of(listener)}/segment")
        else:
            server.should_exit = True

    application = make_service(house, keys, warm, front=front).to_asgi()
    keep_logs()  # after BentoML has made its loggers
    server = uvicorn_of(
        application,
        stop_seconds=house.limits.stop_seconds,
        per_address=house.limits.connections_per_address,
        proxies=front.trusted(),
    )
    # uvicorn takes these signals while it runs and raises them again afterwards, when our own tidying is still to come.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
