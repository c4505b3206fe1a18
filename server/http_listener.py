"""Sockets and uvicorn settings with which the server and the gateway listen for HTTP."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from semiseg.errors import InputError
from server.forwarded_headers import TrustedProxies

if TYPE_CHECKING:
    import uvicorn


MAX_PER_ADDRESS = 500  # connections of one address: half of MAX_CONNECTIONS


def is_loopback(host: str) -> bool:
    """Return True if ``host`` can be reached from this machine only."""
    try:
        found = {ip_address(one[4][0]) for one in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, ValueError):
        return True  # not an address; bind_socket raises the error
    return all(one.is_loopback for one in found)


def bind_socket(host: str, port: int, *, host_hint: str, port_hint: str) -> socket.socket:
    """Open a listening socket; port 0 takes a free port.

    Args:
        host, port: Address to listen on.
        host_hint, port_hint: Advice for error messages on how to choose another one, such as "use --host 127.0.0.1".

    Raises:
        InputError: The address or the port cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise InputError(f"{host} is not an address of this machine ({error.strerror}); {host_hint}.") from None
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The server cannot listen on port {port} of {host} ({reason}); {port_hint}.") from None


def listener_url(listener: socket.socket) -> str:
    """The URL of a listening socket, for messages."""
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
    """Create a uvicorn server for an ASGI application, without uvicorn's access log.

    Args:
        application: ASGI application.
        stop_seconds: Seconds that running requests have to end after the server was asked to stop.
        per_address: Maximum number of open connections of one address.
        proxies: Proxies to which ``per_address`` does not apply. Their forwarded headers are read by the application.
        more: Further settings of uvicorn.
    """
    import uvicorn

    from server.http_protocol import MAX_CONNECTIONS, make_protocol

    config = uvicorn.Config(
        application,
        http=make_protocol(per_address, proxies or TrustedProxies()),
        proxy_headers=False,  # uvicorn would trust every process of this machine
        limit_concurrency=MAX_CONNECTIONS,
        log_config=None,
        access_log=False,  # it contains whole paths
        server_header=False,
        timeout_graceful_shutdown=stop_seconds,
        **more,
    )
    return uvicorn.Server(config)
