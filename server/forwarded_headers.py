"""Headers that a reverse proxy adds (X-Forwarded-For, -Host, -Prefix); only those of trusted proxies are used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from semiseg.errors import InputError

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
_PREFIX = re.compile(r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.~-]{1,64}){1,8}")


class TrustedProxies:
    """The proxies whose forwarded headers are used, and the path prefix under which they publish this server."""

    def __init__(self, addresses: Iterable[str] = (), prefix: str = "") -> None:
        """Read the configuration.

        Args:
            addresses: Addresses and networks, such as ``10.1.2.3`` or ``172.16.0.0/12``.
            prefix: Path prefix of all requests, such as ``/semiseg``; a trusted proxy may send another one.

        Raises:
            InputError: An address or the prefix is invalid.
        """
        self.networks = tuple(_network(one) for one in addresses)
        self._prefix = _checked_prefix(prefix.rstrip("/"))

    def trusts(self, host: str | None) -> bool:
        """Return True if forwarded headers from this address are used."""
        found = _address(host or "")
        return found is not None and any(found in network for network in self.networks)

    def apply(self, scope: dict[str, Any]) -> None:
        """Write the values of trusted headers into an ASGI scope.

        ``client`` becomes the nearest address that is not a trusted proxy, ``semiseg.host`` the host name that the
        client used, and ``semiseg.prefix`` the path prefix, which is removed from ``path`` if the proxy left it there.
        """
        host, prefix = _last(scope, b"host"), self._prefix
        peer = (scope.get("client") or ("", 0))[0]
        if self.trusts(peer):
            scope["client"] = (self._nearest(peer, _values(scope, b"x-forwarded-for")), 0)
            host = _last(scope, b"x-forwarded-host") or host
            said = _last(scope, b"x-forwarded-prefix").rstrip("/")
            prefix = said if _PREFIX.fullmatch(said) else prefix
        scope["semiseg.host"], scope["semiseg.prefix"] = host, prefix
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope["path"] = scope["path"][len(prefix) :]
            scope["raw_path"] = scope["path"].encode()

    def _nearest(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address in front of the last trusted proxy; each proxy appends the address that connected to it."""
        found = peer
        for one in reversed(forwarded):
            address = _address(one)
            if address is None:
                break
            found = str(address)
            if not self.trusts(found):
                break
        return found


def path_prefix(scope: Any) -> str:
    """The path prefix of this server in URLs that are sent to the client."""
    prefix: str = scope.get("semiseg.prefix", "")
    return prefix


def _values(scope: dict[str, Any], name: bytes) -> list[str]:
    lines = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return [one.strip() for line in lines for one in line.split(",") if one.strip()]


def _last(scope: dict[str, Any], name: bytes) -> str:
    return (_values(scope, name) or [""])[-1]


def _address(text: str) -> Address | None:
    """An address as proxies write it: bare, with a port, or in brackets."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise InputError(
            f"{text!r} is not an IP address or network of a proxy; write it like 10.1.2.3 or 10.1.0.0/16."
        ) from None


def _checked_prefix(prefix: str) -> str:
    if prefix and not _PREFIX.fullmatch(prefix):
        raise InputError(f"{prefix!r} is not a valid path prefix; write it like /semiseg.")
    return prefix
