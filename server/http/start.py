"""Starting the server: verify the bundle, bind the port, then answer, all in one process.

One process, because there is one model in memory and its requests are threads; a supervisor (the container engine,
systemd) starts it again if it dies. BentoML's own launcher would add a second process and write into the home folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from semiseg.errors import InputError
from server.http.limits import Limits
from server.http.model import ModelSettings, ServedModel

Announce = Callable[[str], None]


def serve(settings: ModelSettings, limits: Limits, *, host: str, port: int, announce: Announce) -> None:
    """Answer until told to stop (SIGTERM, SIGINT).

    Args:
        settings: the bundle and how to run it.
        limits: what is accepted.
        host: name or address to listen on.
        port: port to listen on; 0 takes a free one.
        announce: told where the server listens, and when it is ready.

    Raises:
        BundleError, EngineError, InputError: the bundle or a setting cannot be used, or the port cannot be had. The
            port is bound only after the bundle was found good.
    """
    scratch = Path(tempfile.mkdtemp(prefix="semiseg-serve-"))
    try:
        _keep_everything_in(scratch)
        model = ServedModel.open(settings)
        with _bound(host, port) as listener:
            announce(f"listening on {_url(listener)}, warming up {model.identity.name}")
            _run(model, limits, listener, announce)
        if model.failure is not None:
            raise model.failure
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_everything_in(scratch: Path) -> None:
    """One folder for all that is written, and no telemetry; the libraries read this when they are imported."""
    tempfile.tempdir = str(scratch)
    metrics = scratch / "metrics"
    metrics.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    os.environ.setdefault("BENTOML_HOME", str(scratch / "bentoml"))
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # Otherwise ONNX Runtime's Linux builds report to their maker and keep a device id in the home folder; its own
    # disable_telemetry_events() comes too late for that.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


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


def _run(model: ServedModel, limits: Limits, listener: socket.socket, announce: Announce) -> None:
    import uvicorn
    from bentoml._internal.context import server_context
    from bentoml._internal.log import configure_server_logging

    from server.http.service import make_service

    configure_server_logging()
    # What BentoML's launcher would set: labels of its log lines and metrics.
    server_context.service_name = server_context.bento_name = "semiseg"
    server_context.service_routes = ["/segment"]

    def warm() -> None:
        if model.failure is None:
            announce(f"ready: POST a scan to {_url(listener)}/segment")
        else:
            server.should_exit = True

    config = uvicorn.Config(
        make_service(model, limits, warm).to_asgi(),
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=limits.stop_seconds,
    )
    server = uvicorn.Server(config)
    # uvicorn takes these signals while it runs and raises them again afterwards, when our own tidying is still to come.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
