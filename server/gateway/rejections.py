"""Rejected associations and connections, for the log, the audit log, the status page and the metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from server.gateway.audit import AuditLog

REPEAT_SECONDS = 10.0  # seconds within which the same rejection of the same peer is written only once
LATEST_COUNT = 20
_MOST_KEYS = 1000

_LOG = logging.getLogger("semiseg.gateway")


class RejectionLog:
    """Counts and describes rejected associations and connections; thread-safe."""

    def __init__(self, audit: AuditLog) -> None:
        """Start without rejections; each one is also written to ``audit``."""
        self._audit = audit
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._written: dict[tuple[str, ...], float] = {}
        self._latest: deque[dict[str, Any]] = deque(maxlen=LATEST_COUNT)

    def record(
        self,
        reason: str,
        address: str,
        sentence: str,
        *,
        called: str = "",
        calling: str = "",
        contexts: Sequence[str] = (),
    ) -> None:
        """Record the rejection of an association or connection.

        Args:
            reason: Short name of the reason, used as label of the metric.
            address: IP address of the peer.
            sentence: End of a sentence that says what did not match.
            called, calling: AE titles; "" if they were not received.
            contexts: Names of the proposed SOP classes.
        """
        key, now = (reason, address, called, calling), time.monotonic()
        with self._lock:
            self._counts[reason] += 1
            if now - self._written.get(key, float("-inf")) < REPEAT_SECONDS:
                return
            if len(self._written) >= _MOST_KEYS:
                self._written.clear()
            self._written[key] = now
            fields = {"reason": reason, "address": address, "called": called, "calling": calling}
            self._latest.append({"time": time.time(), "why": sentence, **fields})
        titles = f", calling {calling!r}, called {called!r}" if calling or called else ""
        what = f", for {', '.join(contexts[:10])}" if contexts else ""
        _LOG.warning("Rejected %s%s%s: %s", address, titles, what, sentence)
        self._audit.record("rejected", **fields, contexts=list(contexts[:10]), why=sentence)

    def counts(self) -> dict[str, int]:
        """Return the number of rejections by reason."""
        with self._lock:
            return dict(self._counts)

    def latest(self) -> list[dict[str, Any]]:
        """Return the latest rejections, newest first."""
        with self._lock:
            return list(self._latest)[::-1]
