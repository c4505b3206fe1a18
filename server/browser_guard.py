"""What a browser may be made to do here by pages of others: nothing.

A page of another server reaches this one through the browser of somebody who may use it, in two ways. By DNS rebinding
its own name becomes this machine's address, and to the browser the two are one server; then the Host header still says
the other name. Or it sends a form or a fetch without asking; then Sec-Fetch-Site and Origin say so
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
FORBIDDEN = 403  # and not 421, after which a browser may try again over another connection
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_DEFAULT_PORTS = (":80", ":443")


class BrowserGuard:
    """Checks the Host of every request, and the origin of those that change something."""

    def __init__(
        self,
        *,
        bind_host: str = "",
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        keys: bool = False,
        option: str = "--allowed-host",
    ) -> None:
        """Take the configuration.

        Args:
            bind_host: Name or address that is listened on.
            hosts: Further names by which the server may be called; ``*.example.org`` for all below one, ``*`` for
                every name.
            origins: Origins of other servers whose pages may use this one.
            keys: True for a server whose requests need an API key. It is checked only for ``hosts`` that are given: a
                page of another name has no key, and colleagues know the server by names that it does not know.
            option: Option or key of the configuration that allows a name, for the sentence of a refusal.

        Raises:
            InputError: one of the names is none.
        """
        self._names = {"localhost", _name_in(bind_host).lower(), socket.gethostname().lower()} - {""}
        self._below: list[str] = [".localhost"]
        self._origins = {_origin_of(origin) for origin in origins}
        self._option = option
        named = [host.strip().lower() for host in hosts]
        for host in named:
            below = host.startswith("*.")
            if host != "*" and not _NAME.fullmatch(host[2:] if below else host) and not _is_address(host):
                raise InputError(f"{host!r} is no name of a server; write it without port, like scans.example.org.")
            self._below += [host[1:]] if below else []
        self._names.update(named)
        self._every_name = "*" in named or (keys and not named)

    def check(self, scope: Any) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused; None for one that is not.

        Args:
            scope: ASGI scope, which :meth:`server.forwarded_headers.TrustedProxies.apply` may have seen.
        """
        headers = dict(scope["headers"])
        host = scope.get("semiseg.host") or headers.get(b"host", b"").decode("latin-1")
        if host and not self._is_ours(host):
            name = _name_in(host).lower()
            which = f"the name {name}" if _NAME.fullmatch(name) and len(name) < 254 else "such a name"
            return FORBIDDEN, (
                f"Nobody said that this server may be called by {which}; its operator does so with `{self._option}`."
            )
        if scope["method"] not in SAFE_METHODS and not self._same_site(headers, host):
            return FORBIDDEN, "A page of another server may not send anything to this one."
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_in(host).lower().removesuffix(".")
        if self._every_name or name in self._names or any(name.endswith(one) for one in self._below):
            return True
        return _is_address(name)  # a rebound page has a name of its own; an address is what the browser connected to

    def _same_site(self, headers: dict[bytes, bytes], host: str) -> bool:
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and _origin_of(origin) in self._origins:
            return True
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site in (b"same-origin", b"none")
        # Browsers send no Sec-Fetch-Site to plain HTTP beyond loopback. Programs send neither.
        return not origin or _without_port(origin.partition("://")[2]) == _without_port(host.lower())


def _origin_of(origin: str) -> str:
    return origin.lower().rstrip("/")


def _name_in(host: str) -> str:
    """The name or address in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _without_port(netloc: str) -> str:
    """A host and port, the port left out where it is the scheme's own: a proxy with TLS changes the scheme."""
    return next((netloc.removesuffix(port) for port in _DEFAULT_PORTS if netloc.endswith(port)), netloc)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
