"""When a study is complete: nothing more came for a while, all that was announced is there, or somebody says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.gateway.config import Completeness


@dataclass
class _Open:
    since: float
    expected: int | None = None
    said: str = ""


class Studies:
    """The studies that something has come for since they were last complete.

    It is kept in memory only: after a restart every study on the disk is open again, and one that was complete already
    is found to be so by the queue, which knows its instances.
    """

    def __init__(self, rule: Completeness, count: Callable[[str], int], known: Iterable[str]) -> None:
        """Wait for studies that are ``known`` already; ``count`` says how many instances one has."""
        self._rule, self._count = rule, count
        self._lock = threading.Lock()
        self._open = {name: _Open(time.monotonic()) for name in known}

    def arriving(self, name: str, announced: int | None) -> None:
        """An instance is coming."""
        with self._lock:
            one = self._open.setdefault(name, _Open(0.0))
            one.since, one.said = time.monotonic(), ""
            if announced is not None and self._rule.believe_counts:
                one.expected = announced

    def is_open(self, name: str) -> bool:
        """Whether it is being waited for."""
        with self._lock:
            return name in self._open

    def open_count(self) -> int:
        """How many are being waited for."""
        with self._lock:
            return len(self._open)

    def end(self, name: str, why: str, expected: int | None = None) -> None:
        """Somebody says that a study is complete, or will be with ``expected`` instances."""
        with self._lock:
            one = self._open.setdefault(name, _Open(time.monotonic()))
            if expected is None:
                one.said = why
            else:
                one.expected = expected

    def complete(self, then: Callable[[str, str], None]) -> float:
        """Call ``then(name, why)`` for each study that is complete now, and stop waiting for it.

        Where ``then`` fails, or an instance came meanwhile, the study stays open.

        Returns:
            Seconds after which it is worth looking again.
        """
        with self._lock:
            looked_at = {name: (one.since, one.expected, one.said) for name, one in self._open.items()}
        now, pause = time.monotonic(), 1.0
        for name, stand in looked_at.items():
            since, expected, said = stand
            count = self._count(name) if expected is not None else 0
            if said:
                why = said
            elif expected is not None and count >= expected:
                why = f"{count} of {expected} announced instances are here"
            elif now - since >= self._rule.quiet_seconds:
                why = f"nothing has come for {self._rule.quiet_seconds:g} s"
            else:
                pause = min(pause, self._rule.quiet_seconds - (now - since))
                continue
            then(name, why)
            with self._lock:
                one = self._open.get(name)
                if one is not None and (one.since, one.expected, one.said) == stand:
                    del self._open[name]
        return max(0.05, pause)
