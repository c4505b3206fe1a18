"""A concurrency limiter that grants its slots in the order of the requests."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator


class FifoLimiter:
    """A counting lock whose waiting callers are served in order; a semaphore does not guarantee that.

    A caller that releases a slot and asks for another goes to the end of the queue. Otherwise the worker of a long
    queue would take each slot that it returns, and requests would never get one.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot during the block; waits without limit until one is granted."""
        self.acquire(None)
        try:
            yield
        finally:
            self.release()

    def acquire(self, timeout: float | None) -> bool:
        """Wait for a slot; False if none was granted in ``timeout`` seconds. None waits without limit."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(timeout):
            return True
        with self._lock:
            if mine.is_set():  # granted after the timeout, before the lock was taken
                return True
            self._waiting.remove(mine)
            return False

    def acquire_unless_stopped(self, stopped: Callable[[], bool], poll_interval: float) -> bool:
        """Wait for a slot until ``stopped`` is true; the position is lost after each ``poll_interval`` seconds.

        :class:`server.jobs.fair_limiter.FairLimiter` keeps the position.
        """
        while not self.acquire(poll_interval):
            if stopped():
                return False
        return True

    def release(self) -> None:
        """Return a slot and grant it to the caller that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
