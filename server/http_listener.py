"""Where a process listens for HTTP, and with how little patience: the same for the server and the gateway."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from semiseg.errors import InputError
from server.forwarded_headers import TrustedProxies

if TYPE_CHECKING:
    import uvicorn


MAX_PER_ADDRESS = 500  # connections of one address, half of all


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        found = {ip_address(one[4][0]) for one in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, ValueError):
        return True  # no address at all: binding it says so
    return all(one.is_loopback for one in found)


def bind_socket(host: str, port: int, *, host_hint: str, port_hint: str) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Args:
        host, port: where.
        host_hint, port_hint: how another one is chosen, such as "use --host 127.0.0.1".

    Raises:
        InputError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise InputError(f"{host} is no address of this machine ({error.strerror}); {host_hint}.") from None
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The server cannot listen on port {port} of {host} ({reason}); {port_hint}.") from None


def listener_url(listener: socket.socket) -> str:
    """Its address, for people."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_uvicorn_server(
    application: Any,
    *,
    stop_seconds: int,
    per_address: int = MAX_PER_ADDRESS,
    proxies: TrustedProxies | None = None,
    **more: Any,
) -> uvicorn.Server:
    """A uvicorn server of an ASGI application, without its logs.

    Args:
        application: The application.
        stop_seconds: Time in which running requests may end after the server was told to stop.
        per_address: Most open connections of one address.
        proxies: Proxies that may have more of them; what they say of a request is the application's to believe.
        more: Further settings of uvicorn's.
    """
    import uvicorn

    from server.http_protocol import MAX_CONNECTIONS, make_protocol

    config = uvicorn.Config(
        application,
        http=make_protocol(per_address, proxies or TrustedProxies()),
        proxy_headers=False,  # uvicorn believes every process of this machine
        limit_concurrency=MAX_CONNECTIONS,
        log_config=None,
        access_log=False,  # it holds whole paths
        server_header=False,
        timeout_graceful_shutdown=stop_seconds,
        **more,
    )
    return uvicorn.Server(config)
