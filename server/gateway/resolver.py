"""Addresses of servers, resolved in separate threads, so that a name server that hangs blocks nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

REFRESH_SECONDS = 10.0  # seconds after which a name is resolved again: its addresses change as servers come and go
FIRST_LOOKUP_SECONDS = 3.0  # longest wait for the first look-up of all names, in seconds


class Resolver:
    """Resolves the host names of URLs; thread-safe."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Configure the URLs; nothing is resolved yet."""
        self._urls = list(urls)
        self._found: dict[str, list[str]] = {}
        self._since: dict[str, float] = {}
        self._pending: set[str] = set()
        self._changed = threading.Condition()

    def refresh(self) -> None:
        """Resolve names again that are due; only the first look-up is waited for, for a limited time."""
        now = time.monotonic()
        with self._changed:
            first = any(url not in self._since for url in self._urls)
            due = [
                url
                for url in self._urls
                if url not in self._pending and now - self._since.get(url, float("-inf")) >= REFRESH_SECONDS
            ]
            self._pending |= set(due)
            self._since |= dict.fromkeys(due, now)
        for url in due:
            if _is_address(url):
                self._look_up(url)
            else:
                threading.Thread(target=self._look_up, args=(url,), name="resolver", daemon=True).start()
        if first:
            with self._changed:
                self._changed.wait_for(lambda: not self._pending, FIRST_LOOKUP_SECONDS)

    def resolved(self) -> list[str]:
        """Return a URL for each known address, from the last successful look-up of its name."""
        with self._changed:
            return list(dict.fromkeys(one for url in self._urls for one in self._found.get(url, ())))

    def unresolved(self) -> list[str]:
        """Return the URLs for which no address is known, now or from an earlier look-up."""
        with self._changed:
            return [url for url in self._urls if not self._found.get(url)]

    def _look_up(self, url: str) -> None:
        found: list[str] = []
        with contextlib.suppress(OSError, UnicodeError):
            found = _addresses_of(url)
        with self._changed:
            if found:
                self._found[url] = found
            self._pending.discard(url)
            self._changed.notify_all()


def _is_address(url: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def _addresses_of(url: str) -> list[str]:
    """Return a URL for each address of a name; for https the URL itself, because the certificate is for the name."""
    parts = urlsplit(url)
    found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    if parts.scheme == "https":
        return [url]
    addresses = dict.fromkeys(str(one[4][0]) for one in found)
    hosts = [f"[{address}]" if ":" in address else address for address in addresses]
    return [urlunsplit((parts.scheme, f"{host}:{parts.port or 80}", parts.path, "", "")) for host in hosts]
