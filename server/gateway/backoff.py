"""Delays after failures: exponential back-off of single jobs, and a common delay for a destination that fails."""

from __future__ import annotations

import random
import threading
import time

from server.gateway.config_types import Retry


def retry_delay(tries: int, retry: Retry, at_least: float = 0.0) -> float:
    """Return the seconds until the next attempt.

    Args:
        tries: Number of failures so far, from 1.
        retry: Delays of the configuration.
        at_least: Seconds that the peer asked for (Retry-After); limited to ``retry.longest_seconds``.
    """
    delay = min(retry.first_seconds * 2 ** min(tries - 1, 30), retry.longest_seconds) * random.uniform(0.75, 1.25)
    return max(delay, min(at_least, retry.longest_seconds))


class Backoff:
    """Common delay of everything that waits for one destination; thread-safe.

    Each failure lengthens the delay of everything that waits for the destination, so that a thousand results do not
    each contact an archive that is down. The first success ends the delay.
    """

    def __init__(self, retry: Retry) -> None:
        """Start without a failure, with the delays of ``retry``."""
        self.retry = retry
        self._lock = threading.Lock()
        self._failures, self._until, self._trouble = 0, float("-inf"), ""

    def trouble(self) -> str:
        """Return the problem of the destination as a sentence; "" if none is known."""
        with self._lock:
            return self._trouble

    def ready(self) -> bool:
        """Return True if the destination may be contacted now."""
        with self._lock:
            return time.monotonic() >= self._until

    def record_failure(self, sentence: str, at_least: float = 0.0) -> float:
        """Record a failure and return the seconds for which the destination is not contacted.

        Of several failures at the same time, only the first lengthens the delay.
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
        """Record a success; return True if the destination had failed before."""
        with self._lock:
            had_failed = self._failures > 0
            self._failures, self._until, self._trouble = 0, float("-inf"), ""
            return had_failed
