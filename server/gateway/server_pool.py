"""Several servers that segment: each scan goes to the one with least to do, and round one that does not answer."""

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

COOLDOWN_SECONDS = (
    10.0  # seconds in which a server that did not answer is asked last; twice as long after each further failure
)
MAX_COOLDOWN_SECONDS = 300.0


_NO_NAME = "{}: nobody knows the name; check `servers.urls`, and that the name service answers"


@dataclass
class _Server:
    busy: int = 0
    resting_until: float = 0.0
    failures: int = 0
    trouble: str = ""


class ServerPool:
    """Who segments next; to be used from any thread."""

    def __init__(self, servers: Servers) -> None:
        """Look nobody up yet."""
        self._resolver, self._parallel = Resolver(servers.urls), servers.parallel
        self._servers: dict[str, _Server] = {}
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def acquire(self, besides: Sequence[str] = (), stopped: Callable[[], bool] = lambda: False) -> Iterator[str | None]:
        """The URL of a server that has a place free, which is held in the block; waits for one.

        Args:
            besides: URLs that are not wanted, since they were asked already.
            stopped: Function that is asked now and then; True ends the wait.

        Yields:
            None when all there are have been asked, or those left do not answer at present.

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

    def mark_unavailable(self, url: str, sentence: str, seconds: float | None = None) -> None:
        """A server is not well, or is busy: ask others first for a while.

        Args:
            url: The server.
            sentence: Sentence that says what is wrong with it, and what is to be done.
            seconds: Seconds for which it asked to be left alone; None for a time that grows with each failure.
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
        """A server did what it was asked for."""
        with self._changed:
            if one := self._servers.get(url):
                one.failures, one.resting_until, one.trouble = 0, 0.0, ""

    def troubles(self) -> dict[str, str]:
        """What is wrong with each server: "" where nothing is known to be."""
        unknown = {url: _NO_NAME.format(url) for url in self._resolver.unresolved()}
        with self._changed:
            return {url: one.trouble for url, one in sorted(self._servers.items())} | unknown

    def capacity(self) -> int:
        """How many scans the servers known at present may be given in all; 1 where none is, so that this is noticed."""
        self._look_up()
        with self._changed:
            return max(1, len(self._servers) * self._parallel)

    def urls(self) -> list[str]:
        """Those known at present, and those whose name nobody knows."""
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
                # One that rests is asked only when no other could have the scan: it may be back. Where another was
                # asked already, the scan comes again later instead of waiting for one that hangs.
                if not well and besides:
                    return None
                free = [url for url in well or wanted if wanted[url].busy < self._parallel]
                if free:
                    url = min(free, key=lambda name: (wanted[name].resting_until if not well else 0, wanted[name].busy))
                    wanted[url].busy += 1
                    return url
                self._changed.wait(0.5)
            if stopped():
                raise Cancelled("It was stopped before a server had a place.")

    def _look_up(self) -> None:
        self._resolver.refresh()
        found = self._resolver.resolved()
        with self._changed:
            if set(found) != set(self._servers):
                kept = {url: one for url, one in self._servers.items() if url in found or one.busy}
                self._servers = kept | {url: _Server() for url in found if url not in kept}
                self._changed.notify_all()


class PoolLimiter(FifoLimiter):
    """As many turns as the servers have places: what nobody could take on stays in the queue, and is seen there."""

    def __init__(self, pool: ServerPool) -> None:
        """Ask ``pool`` each time: servers come and go."""
        super().__init__(0)
        self._pool, self._held = pool, 0
        self._changed = threading.Condition()

    def acquire(self, timeout: float | None) -> bool:
        """Wait for a turn; False when none came in time."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._held < self._pool.capacity(), timeout)
            self._held += came
            return came

    def release(self) -> None:
        """Give the turn back."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()
