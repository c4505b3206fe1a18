"""Completion of studies: by a quiet time, by the announced number of instances, or by declaration."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from server.gateway.config import Completeness


@dataclass
class _PendingStudy:
    """Study that is not complete yet.

    Attributes:
        since: Monotonic time of its last event.
        hint: Number of instances that its instances announce.
        contradicted: True once two instances announced different numbers.
        expected: Number of instances that was given with a declaration.
        said: Reason why the study was declared complete; "" if it was not.
        sending: Open associations and requests that have sent instances of the study.
        broken_by: Sender whose association or request was interrupted; "" if none was.
        held: Reason why the study is held although nothing more arrives; "" if it is not.
    """

    since: float
    hint: int | None = None
    contradicted: bool = False
    expected: int | None = None
    said: str = ""
    sending: set[int] = field(default_factory=set)
    broken_by: str = ""
    held: str = ""

    def snapshot(self) -> tuple[object, ...]:
        """Return the values that change with each event."""
        return self.since, self.hint, self.contradicted, self.expected, self.said, self.broken_by


class StudyFacts(Protocol):
    """Facts about stored studies, on which their completion depends."""

    def instance_count(self, name: str) -> int:
        """Return the number of stored instances of a study."""

    def is_being_fetched(self, name: str) -> bool:
        """Return True while a study is fetched from an archive; its quiet time does not run meanwhile."""

    def missing_text(self, name: str) -> str:
        """Describe what is known to be missing of a study, as a sentence; "" if nothing is."""

    def conflict_text(self, name: str) -> str:
        """Describe what an operator has to decide before a study is segmented, as a sentence; "" if nothing."""


class StudyTracker:
    """Studies with events since they were last complete.

    The state is kept in memory only: after a restart, every study on the disk is open again. One that was complete
    before is recognised by the queue, whose key includes the instances.
    """

    def __init__(self, rule: Completeness) -> None:
        """Start without studies; ``rule`` is the configuration."""
        self._rule = rule
        self._lock = threading.Lock()
        self._open: dict[str, _PendingStudy] = {}

    def open_stored(self, names: Iterable[str], interrupted: Mapping[str, str]) -> None:
        """Open the studies that were stored by a former process.

        Args:
            names: Names of the studies.
            interrupted: Senders whose transfer had not ended when that process stopped, by study.
        """
        with self._lock:
            for name in (*names, *interrupted):
                self._open.setdefault(name, _PendingStudy(time.monotonic())).broken_by = interrupted.get(name, "")

    def instance_arriving(self, name: str, announced: int | None) -> None:
        """Record the arrival of an instance, with the number of instances that it announces for its study."""
        with self._lock:
            one = self._open.setdefault(name, _PendingStudy(0.0))
            one.since, one.said, one.held = time.monotonic(), "", ""
            if announced is not None:
                one.contradicted = one.contradicted or one.hint not in (None, announced)
                one.hint = announced

    def transfer_started(self, name: str, token: int) -> None:
        """Record that the association or request ``token`` has sent instances of a study and is still open."""
        with self._lock:
            if name in self._open:
                self._open[name].sending.add(token)

    def transfer_ended(self, token: int, *, broken_by: str = "") -> None:
        """Record the end of an association or request; ``broken_by`` names the sender of an interrupted one."""
        with self._lock:
            for one in self._open.values():
                if token in one.sending:
                    one.sending.discard(token)
                    one.broken_by = broken_by
                    if broken_by:
                        one.since = time.monotonic()

    def is_open(self, name: str) -> bool:
        """Return True if the study is not complete and not held."""
        with self._lock:
            return name in self._open and not self._open[name].held

    def open_count(self) -> int:
        """Return the number of studies that are not complete and not held."""
        with self._lock:
            return sum(not one.held for one in self._open.values())

    def open_names(self) -> list[str]:
        """Return the names of the studies that are not complete and not held."""
        with self._lock:
            return [name for name, one in self._open.items() if not one.held]

    def held_reasons(self) -> dict[str, str]:
        """Return the reasons of held studies, by name."""
        with self._lock:
            return {name: one.held for name, one in self._open.items() if one.held}

    def mark_complete(self, name: str, why: str, expected: int | None = None) -> None:
        """Declare a study complete, now or once it has ``expected`` instances."""
        with self._lock:
            one = self._open.setdefault(name, _PendingStudy(time.monotonic()))
            if expected is None:
                one.said = why
            else:
                one.expected = expected

    def process_complete(self, facts: StudyFacts, then: Callable[[str, str], None]) -> float:
        """Call ``then(name, why)`` for each study that is complete now, and close it.

        If ``then`` fails, or an instance arrives meanwhile, the study stays open.

        Args:
            facts: Facts about the stored studies.
            then: Function that is called with the name of each complete study and the reason.

        Returns:
            Seconds until the next check.
        """
        with self._lock:
            looked_at = {name: (one, one.snapshot()) for name, one in self._open.items()}
        pause = 1.0
        for name, (one, stand) in looked_at.items():
            why, wait = self._completion_reason(name, one, facts)
            if not why:
                pause = min(pause, wait)
                continue
            if not one.said and facts.is_being_fetched(name):
                with self._lock:
                    one.since = time.monotonic()
                continue
            if undecided := facts.conflict_text(name):
                one.held = undecided
                continue
            if lacking := facts.missing_text(name):
                if self._rule.incomplete == "hold":
                    one.held = lacking
                    continue
                why = f"{why}; {lacking}"
            one.held = ""
            then(name, why)
            with self._lock:
                if self._open.get(name) is one and one.snapshot() == stand:
                    del self._open[name]
        return max(0.05, pause)

    def _completion_reason(self, name: str, one: _PendingStudy, facts: StudyFacts) -> tuple[str, float]:
        """Return the reason why a study is complete, or "" and the seconds until it may be."""
        if one.said:
            return one.said, 0.0
        rule, quiet = self._rule, time.monotonic() - one.since
        count = facts.instance_count(name) if one.expected is not None or one.hint is not None else 0
        if one.expected is not None and count >= one.expected:
            return f"{count} of {one.expected} announced instances have arrived", 0.0
        wait = 1.0
        # The announced number is used only if it is exact: it is wrong if more instances have arrived or if it differs
        # between instances, and while the sender's association is open more may follow.
        if rule.believe_counts and count == one.hint and not one.contradicted and not one.sending:
            settle = min(rule.counted_seconds, rule.quiet_seconds or rule.counted_seconds)
            if quiet >= settle:
                return f"{count} of {one.hint} announced instances have arrived", 0.0
            wait = settle - quiet
        if rule.quiet_seconds is None:
            return "", wait
        patience = rule.quiet_seconds if not one.broken_by else rule.interrupted_timeout()
        if quiet < patience:
            return "", min(wait, patience - quiet)
        after = f" after {one.broken_by} was interrupted" if one.broken_by else ""
        of = f", {count} of {one.hint} announced instances have arrived" if one.hint is not None else ""
        return f"nothing has arrived for {patience:g} s{after}{of}", 0.0
