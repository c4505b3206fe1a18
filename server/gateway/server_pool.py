"""Distribution of scans among several servers: to the least busy one, avoiding servers that do not answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from semiseg.errors import Cancelled
from server.gateway.config import Servers
from server.gateway.resolver import Resolver
from server.jobs.fifo_limiter import FifoLimiter

# Time for which a server that failed is used only as a last resort; it doubles with each further failure.
COOLDOWN_SECONDS = 10.0
MAX_COOLDOWN_SECONDS = 300.0


_NO_NAME = "{}: the name cannot be resolved; check `servers.urls`, and that the name service answers"


@dataclass
class _Server:
    busy: int = 0
    resting_until: float = 0.0
    failures: int = 0
    trouble: str = ""


class ServerPool:
    """Selects the server for the next scan; thread-safe."""

    def __init__(self, servers: Servers) -> None:
        """Configure the pool; no name is resolved yet."""
        self._resolver, self._parallel = Resolver(servers.urls), servers.parallel
        self._servers: dict[str, _Server] = {}
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def acquire(self, besides: Sequence[str] = (), stopped: Callable[[], bool] = lambda: False) -> Iterator[str | None]:
        """Wait for a server with free capacity, and reserve a place on it while the context is open.

        Args:
            besides: URLs of servers to skip, because they were tried already.
            stopped: Function that returns True to end the wait; called repeatedly.

        Yields:
            URL of the server; None if all servers were tried, or the others do not answer at present.

        Raises:
            Cancelled: The wait was stopped.
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

    def mark_unavailable(self, url: str, sentence: str, seconds: float | None = None) -> None:
        """Record that a server failed or is busy, so that others are preferred for a while.

        Args:
            url: URL of the server.
            sentence: Problem of the server and advice, as a sentence.
            seconds: Delay that the server asked for; None for a time that grows with each failure.
        """
        with self._changed:
            if (one := self._servers.get(url)) is None:
                return
            one.trouble = sentence
            if seconds is None:
                one.failures += 1
                seconds = COOLDOWN_SECONDS * 2.0 ** min(one.failures - 1, 10)
            one.resting_until = time.monotonic() + min(seconds, MAX_COOLDOWN_SECONDS)

    def mark_available(self, url: str) -> None:
        """Record that a server worked."""
        with self._changed:
            if one := self._servers.get(url):
                one.failures, one.resting_until, one.trouble = 0, 0.0, ""

    def troubles(self) -> dict[str, str]:
        """Return the problem of each server by URL; "" if none is known."""
        unknown = {url: _NO_NAME.format(url) for url in self._resolver.unresolved()}
        with self._changed:
            return {url: one.trouble for url, one in sorted(self._servers.items())} | unknown

    def capacity(self) -> int:
        """Return the total number of simultaneous scans; 1 if no server is known, so that a job reports this."""
        self._look_up()
        with self._changed:
            return max(1, len(self._servers) * self._parallel)

    def urls(self) -> list[str]:
        """Return the URLs of known servers, and those whose name cannot be resolved."""
        self._look_up()
        with self._changed:
            return sorted([*self._servers, *self._resolver.unresolved()])

    def _taken(self, besides: set[str], stopped: Callable[[], bool]) -> str | None:
        while True:
            self._look_up()
            with self._changed:
                wanted = {url: one for url, one in self._servers.items() if url not in besides}
                if not wanted:
                    return None
                now = time.monotonic()
                well = [url for url, one in wanted.items() if one.resting_until <= now]
                # A server that failed recently is used only if there is no other, since it may work again. If another
                # one was tried already, the scan is retried later instead of waiting for a server that hangs.
                if not well and besides:
                    return None
                free = [url for url in well or wanted if wanted[url].busy < self._parallel]
                if free:
                    url = min(free, key=lambda name: (wanted[name].resting_until if not well else 0, wanted[name].busy))
                    wanted[url].busy += 1
                    return url
                self._changed.wait(0.5)
            if stopped():
                raise Cancelled("It was stopped before a server was free.")

    def _look_up(self) -> None:
        self._resolver.refresh()
        found = self._resolver.resolved()
        with self._changed:
            if set(found) != set(self._servers):
                kept = {url: one for url, one in self._servers.items() if url in found or one.busy}
                self._servers = kept | {url: _Server() for url in found if url not in kept}
                self._changed.notify_all()


class PoolLimiter(FifoLimiter):
    """Limits running jobs to the capacity of the servers, so that all others stay visible in the queue."""

    def __init__(self, pool: ServerPool) -> None:
        """Use the current capacity of ``pool``, which changes as servers come and go."""
        super().__init__(0)
        self._pool, self._held = pool, 0
        self._changed = threading.Condition()

    def acquire(self, timeout: float | None) -> bool:
        """Wait for a place; return False if none became free in time."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._held < self._pool.capacity(), timeout)
            self._held += came
            return came

    def release(self) -> None:
        """Release the place."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()
