"""FifoLimiter: so many at a time, in the order in which they were asked for."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator


class FifoLimiter:
    """A counting lock that is fair, which a semaphore is not: who releases and asks again goes to the end of the line.

    Otherwise the worker of a long queue would take each turn that it gives back, and requests would never have one.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Have a turn in the block, however long it takes until it comes."""
        self.acquire(None)
        try:
            yield
        finally:
            self.release()

    def acquire(self, timeout: float | None) -> bool:
        """Wait for a turn; False when none came in ``timeout`` seconds, which None makes endless."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(timeout):
            return True
        with self._lock:
            if mine.is_set():  # it came just now
                return True
            self._waiting.remove(mine)
            return False

    def acquire_unless_stopped(self, stopped: Callable[[], bool], poll_interval: float) -> bool:
        """Wait for a turn until ``stopped`` is true; at each ``poll_interval`` seconds the place is lost.

        :class:`server.jobs.fair_limiter.FairLimiter` keeps the place.
        """
        while not self.acquire(poll_interval):
            if stopped():
                return False
        return True

    def release(self) -> None:
        """Give the turn to whoever has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
