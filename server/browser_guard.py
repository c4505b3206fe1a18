"""Protects the server from requests that pages of other servers send through a user's browser.

Such a page can reach this server in two ways. With DNS rebinding the name of its own server resolves to this machine's
address, so that the browser takes the two for one origin; the Host header still holds the other name. Or the page sends
a form or a fetch across origins; then the headers Sec-Fetch-Site and Origin show it
(https://www.w3.org/TR/fetch-metadata/, https://fetch.spec.whatwg.org/#origin-header).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from semiseg.errors import InputError

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FORBIDDEN = 403  # not 421, after which a browser may repeat the request over another connection
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_DEFAULT_PORTS = (":80", ":443")


class BrowserGuard:
    """Checks the Host header of every request, and the origin of requests with unsafe methods."""

    def __init__(
        self,
        *,
        bind_host: str = "",
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        keys: bool = False,
        option: str = "--allowed-host",
    ) -> None:
        """Store the configuration.

        Args:
            bind_host: Name or address on which the server listens.
            hosts: Further names under which the server may be addressed; ``*.example.org`` allows all subdomains, ``*``
                every name.
            origins: Origins of other servers whose pages may use this one.
            keys: True if requests need an API key. Host names are then checked only if ``hosts`` are given: a page of
                another server has no key, and users may address the server by names that it cannot know.
            option: Command-line option or configuration key that allows a name; it is named in error messages.

        Raises:
            InputError: A host name is invalid.
        """
        self._names = {"localhost", _name_in(bind_host).lower(), socket.gethostname().lower()} - {""}
        self._below: list[str] = [".localhost"]
        self._origins = {_origin_of(origin) for origin in origins}
        self._option = option
        named = [host.strip().lower() for host in hosts]
        for host in named:
            below = host.startswith("*.")
            if host != "*" and not _NAME.fullmatch(host[2:] if below else host) and not _is_address(host):
                raise InputError(f"{host!r} is not a host name; write it without a port, like scans.example.org.")
            self._below += [host[1:]] if below else []
        self._names.update(named)
        self._every_name = "*" in named or (keys and not named)

    def check(self, scope: Any) -> tuple[int, str] | None:
        """Return the status and the message for a request that is rejected; None if it is allowed.

        Args:
            scope: ASGI scope; :meth:`server.forwarded_headers.TrustedProxies.apply` may have changed it before.
        """
        headers = dict(scope["headers"])
        host = scope.get("semiseg.host") or headers.get(b"host", b"").decode("latin-1")
        if host and not self._is_ours(host):
            name = _name_in(host).lower()
            which = f"the host name {name}" if _NAME.fullmatch(name) and len(name) < 254 else "this host name"
            return FORBIDDEN, (
                f"This server does not accept requests for {which}; its operator can allow it with `{self._option}`."
            )
        if scope["method"] not in SAFE_METHODS and not self._same_site(headers, host):
            return FORBIDDEN, "A page of another server may not send requests to this one."
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_in(host).lower().removesuffix(".")
        if self._every_name or name in self._names or any(name.endswith(one) for one in self._below):
            return True
        return _is_address(name)  # DNS rebinding needs a name; with an address the browser connected to that address

    def _same_site(self, headers: dict[bytes, bytes], host: str) -> bool:
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and _origin_of(origin) in self._origins:
            return True
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site in (b"same-origin", b"none")
        # Browsers send no Sec-Fetch-Site over plain HTTP beyond loopback. Programs send neither header.
        return not origin or _without_port(origin.partition("://")[2]) == _without_port(host.lower())


def _origin_of(origin: str) -> str:
    return origin.lower().rstrip("/")


def _name_in(host: str) -> str:
    """The name or address in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _without_port(netloc: str) -> str:
    """Remove the default port of a scheme from a host and port: a proxy that ends TLS changes the scheme."""
    return next((netloc.removesuffix(port) for port in _DEFAULT_PORTS if netloc.endswith(port)), netloc)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
