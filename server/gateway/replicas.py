"""Several servers that segment: each scan goes to the one with least to do, and round one that does not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from semiseg.errors import Cancelled
from server.gateway.config import Servers
from server.jobs.turns import Turns

LOOK = 10.0  # seconds after which a name is looked up again: servers come and go behind it
REST = 10.0  # seconds in which a server that did not answer is asked last


@dataclass
class _Server:
    busy: int = 0
    resting_until: float = 0.0


class Replicas:
    """Who segments next; to be used from any thread."""

    def __init__(self, servers: Servers) -> None:
        """Look nobody up yet."""
        self._urls, self._parallel = servers.urls, servers.parallel
        self._servers: dict[str, _Server] = {}
        self._looked_up = float("-inf")
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self, besides: Sequence[str] = (), stopped: Callable[[], bool] = lambda: False) -> Iterator[str | None]:
        """The URL of a server that has a place free, which is held in the block; waits for one.

        Args:
            besides: URLs that are not wanted, since they were asked already.
            stopped: asked now and then; True ends the wait.

        Yields:
            None when all there are have been asked.

        Raises:
            Cancelled: it was stopped.
        """
        url = self._taken(set(besides), stopped)
        try:
            yield url
        finally:
            if url is not None:
                with self._changed:
                    if url in self._servers:
                        self._servers[url].busy -= 1
                    self._changed.notify_all()

    def rest(self, url: str, seconds: float = REST) -> None:
        """A server did not answer, or is busy: ask others first for a while."""
        with self._changed:
            if url in self._servers:
                self._servers[url].resting_until = time.monotonic() + seconds

    def places(self) -> int:
        """How many scans the servers known at present may be given in all."""
        return len(self.urls()) * self._parallel

    def urls(self) -> list[str]:
        """Those known at present."""
        self._look_up()
        with self._changed:
            return sorted(self._servers)

    def _taken(self, besides: set[str], stopped: Callable[[], bool]) -> str | None:
        while True:
            self._look_up()
            with self._changed:
                wanted = {url: one for url, one in self._servers.items() if url not in besides}
                if not wanted:
                    return None
                now = time.monotonic()
                free = [url for url, one in wanted.items() if one.busy < self._parallel]
                awake = [url for url in free if wanted[url].resting_until <= now]
                # One that rests is asked only when no other could have the scan: it may be back.
                if awake or (free and len(free) == len(wanted)):
                    url = min(awake or free, key=lambda name: (wanted[name].resting_until > now, wanted[name].busy))
                    wanted[url].busy += 1
                    return url
                self._changed.wait(0.5)
            if stopped():
                raise Cancelled("It was stopped before a server had a place.")

    def _look_up(self) -> None:
        with self._changed:
            if time.monotonic() - self._looked_up < LOOK and self._servers:
                return
            self._looked_up = time.monotonic()
        found = [url for name in self._urls for url in _addresses_of(name)]  # may take seconds: not under the lock
        with self._changed:
            kept = {url: one for url, one in self._servers.items() if url in found or one.busy}
            self._servers = kept | {url: _Server() for url in found if url not in kept}
            self._changed.notify_all()


class Capacity(Turns):
    """As many turns as the servers have places: what nobody could take on stays in the queue, and is seen there."""

    def __init__(self, replicas: Replicas) -> None:
        """Ask ``replicas`` each time: servers come and go."""
        super().__init__(0)
        self._replicas, self._held = replicas, 0
        self._changed = threading.Condition()

    def acquire(self, timeout: float | None) -> bool:
        """Wait for a turn; False when none came in time."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._held < self._replicas.places(), timeout)
            self._held += came
            return came

    def release(self) -> None:
        """Give the turn back."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()


def _addresses_of(url: str) -> list[str]:
    """A URL for each address of a name; the name itself where a certificate is for it, or nobody knows it."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname is None:
        return [url]
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except OSError:
        return [url]
    addresses = dict.fromkeys(str(one[4][0]) for one in found)
    hosts = [f"[{address}]" if ":" in address else address for address in addresses]
    return [urlunsplit((parts.scheme, f"{host}:{parts.port or 80}", parts.path, "", "")) for host in hosts]
