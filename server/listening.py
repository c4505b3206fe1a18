"""Where a process listens for HTTP, and with how little patience: the same for the server and the gateway."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from semiseg.errors import InputError

if TYPE_CHECKING:
    import uvicorn


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        found = {ip_address(one[4][0]) for one in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, ValueError):
        return True  # no address at all: binding it says so
    return all(one.is_loopback for one in found)


def bound(host: str, port: int, *, other_host: str, other_port: str) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Args:
        host, port: where.
        other_host, other_port: how another one is chosen, such as "use --host 127.0.0.1".

    Raises:
        InputError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise InputError(f"{host} is no address of this machine ({error.strerror}); {other_host}.") from None
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The server cannot listen on port {port} of {host} ({reason}); {other_port}.") from None


def url_of(listener: socket.socket) -> str:
    """Its address, for people."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_of(
    application: Any, *, stop_seconds: int, connections_per_address: int | None = None, **more: Any
) -> uvicorn.Server:
    """A uvicorn server of an ASGI application, without its logs; ``more`` are further settings of uvicorn's.

    Running requests may go on for ``stop_seconds`` after it was told to stop. One address may have
    ``connections_per_address`` connections, None for as many as there are.
    """
    import uvicorn

    from server.protocol import CONNECTIONS, protocol_of

    config = uvicorn.Config(
        application,
        http=protocol_of(connections_per_address),
        limit_concurrency=CONNECTIONS,
        log_config=None,
        access_log=False,  # it holds whole paths
        server_header=False,
        timeout_graceful_shutdown=stop_seconds,
        **more,
    )
    return uvicorn.Server(config)
