"""Delays after failures: later each time, and one for a whole destination that is not well."""

from __future__ import annotations

import random
import threading
import time

from server.gateway.config import Retry


def retry_delay(tries: int, retry: Retry, at_least: float = 0.0) -> float:
    """Seconds until the next try.

    Args:
        tries: Number of failures so far, from 1.
        retry: The configuration's delays.
        at_least: Seconds that the other side asked for (Retry-After); at most ``retry.longest_seconds`` are granted.
    """
    delay = min(retry.first_seconds * 2 ** min(tries - 1, 30), retry.longest_seconds) * random.uniform(0.75, 1.25)
    return max(delay, min(at_least, retry.longest_seconds))


class Backoff:
    """Whether a destination is tried at present; to be used from any thread.

    While it is not well, one failure after the other lengthens the delay of all that waits for it, so that a thousand
    results do not knock at a dead archive each on its own. The first success ends the delay for all.
    """

    def __init__(self, retry: Retry) -> None:
        """Begin as one that is well, with the delays of ``retry``."""
        self.retry = retry
        self._lock = threading.Lock()
        self._failures, self._until, self._trouble = 0, float("-inf"), ""

    def trouble(self) -> str:
        """What is wrong with it; "" where nothing is known to be."""
        with self._lock:
            return self._trouble

    def ready(self) -> bool:
        """Whether it may be tried now."""
        with self._lock:
            return time.monotonic() >= self._until

    def record_failure(self, sentence: str, at_least: float = 0.0) -> float:
        """It is not well; the seconds for which it is not tried.

        Of several that fail at the same time, only the first lengthens the delay.
        """
        with self._lock:
            now = time.monotonic()
            self._trouble = sentence
            if now < self._until:
                return self._until - now
            self._failures += 1
            delay = retry_delay(self._failures, self.retry, at_least)
            self._until = now + delay
            return delay

    def record_success(self) -> bool:
        """It answered as it should; True when it had failed before."""
        with self._lock:
            had_failed = self._failures > 0
            self._failures, self._until, self._trouble = 0, float("-inf"), ""
            return had_failed
