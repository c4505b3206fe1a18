"""When a study is complete: nothing more came for a while, all that was announced is there, or somebody says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from server.gateway.config import Completeness


@dataclass
class _PendingStudy:
    """A study that is being waited for.

    Attributes:
        since: Monotonic time of its last event.
        hint: Number of instances that its instances announce.
        contradicted: True once two instances announced different numbers.
        expected: Number of instances that somebody announced by name.
        said: Reason why somebody calls it complete; "" where nobody does.
        sending: Associations and requests that brought something of it and have not ended.
        broken_by: Sender whose association or request broke off; "" where none did.
        held: Reason why it is held although nothing more comes; "" where it is not.
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
        """What changes when something happens to it."""
        return self.since, self.hint, self.contradicted, self.expected, self.said, self.broken_by


class StudyTracker:
    """The studies that something has come for since they were last complete.

    It is kept in memory only: after a restart every study on the disk is open again, and one that was complete already
    is found to be so by the queue, which knows its instances.
    """

    def __init__(
        self,
        rule: Completeness,
        count: Callable[[str], int],
        known: Iterable[str],
        *,
        lacking: Callable[[str], str] = lambda _: "",
        undecided: Callable[[str], str] = lambda _: "",
        fetching: Callable[[str], bool] = lambda _: False,
        interrupted: Mapping[str, str] | None = None,
    ) -> None:
        """Wait for studies that are known already.

        Args:
            rule: Configuration.
            count: Function that returns the number of instances of a study that are here.
            known: Names of the studies that are here.
            lacking: Function that returns a sentence on what is known to be missing of a study, "" for nothing.
            undecided: Function that returns a sentence on what an operator has to decide before a study is segmented,
                "" for nothing.
            fetching: Function that returns True while an archive is still to give a study; its quiet clock does not run
                meanwhile.
            interrupted: Senders that a former process did not hear the end of, by study.
        """
        self._rule, self._count, self._lacking, self._fetching = rule, count, lacking, fetching
        self._undecided = undecided
        self._lock = threading.Lock()
        self._open = {name: _PendingStudy(time.monotonic()) for name in known}
        for name, sender in (interrupted or {}).items():
            self._open.setdefault(name, _PendingStudy(time.monotonic())).broken_by = sender

    def instance_arriving(self, name: str, announced: int | None) -> None:
        """An instance is coming, with the number of instances that it announces for its study."""
        with self._lock:
            one = self._open.setdefault(name, _PendingStudy(0.0))
            one.since, one.said, one.held = time.monotonic(), "", ""
            if announced is not None:
                one.contradicted = one.contradicted or one.hint not in (None, announced)
                one.hint = announced

    def transfer_started(self, name: str, token: int) -> None:
        """An association or request, named by ``token``, brought something of a study and goes on."""
        with self._lock:
            if name in self._open:
                self._open[name].sending.add(token)

    def transfer_ended(self, token: int, *, broken_by: str = "") -> None:
        """An association or request has ended; ``broken_by`` names the sender of one that broke off."""
        with self._lock:
            for one in self._open.values():
                if token in one.sending:
                    one.sending.discard(token)
                    one.broken_by = broken_by
                    if broken_by:
                        one.since = time.monotonic()

    def is_open(self, name: str) -> bool:
        """Whether it is being waited for; one that is held is not."""
        with self._lock:
            return name in self._open and not self._open[name].held

    def open_count(self) -> int:
        """How many are being waited for."""
        with self._lock:
            return sum(not one.held for one in self._open.values())

    def open_names(self) -> list[str]:
        """Names of those that are being waited for."""
        with self._lock:
            return [name for name, one in self._open.items() if not one.held]

    def held_reasons(self) -> dict[str, str]:
        """Why studies are held that nothing more comes for, by name."""
        with self._lock:
            return {name: one.held for name, one in self._open.items() if one.held}

    def mark_complete(self, name: str, why: str, expected: int | None = None) -> None:
        """Somebody says that a study is complete, or will be with ``expected`` instances."""
        with self._lock:
            one = self._open.setdefault(name, _PendingStudy(time.monotonic()))
            if expected is None:
                one.said = why
            else:
                one.expected = expected

    def process_complete(self, then: Callable[[str, str], None]) -> float:
        """Call ``then(name, why)`` for each study that is complete now, and stop waiting for it.

        Where ``then`` fails, or an instance came meanwhile, the study stays open.

        Returns:
            Seconds after which it is worth looking again.
        """
        with self._lock:
            looked_at = {name: (one, one.snapshot()) for name, one in self._open.items()}
        pause = 1.0
        for name, (one, stand) in looked_at.items():
            why, wait = self._completion_reason(name, one)
            if not why:
                pause = min(pause, wait)
                continue
            if not one.said and self._fetching(name):
                with self._lock:
                    one.since = time.monotonic()
                continue
            if undecided := self._undecided(name):
                one.held = undecided
                continue
            if lacking := self._lacking(name):
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

    def _completion_reason(self, name: str, one: _PendingStudy) -> tuple[str, float]:
        """Why a study is complete, or "" and the seconds until it may be."""
        if one.said:
            return one.said, 0.0
        rule, quiet = self._rule, time.monotonic() - one.since
        count = self._count(name) if one.expected is not None or one.hint is not None else 0
        if one.expected is not None and count >= one.expected:
            return f"{count} of {one.expected} announced instances are here", 0.0
        wait = 1.0
        # A number in the instances is believed when it is exact. One that more came than it says, or that differs from
        # instance to instance, is wrong; while the sender's association is open nobody knows which it is.
        if rule.believe_counts and count == one.hint and not one.contradicted and not one.sending:
            settle = min(rule.counted_seconds, rule.quiet_seconds or rule.counted_seconds)
            if quiet >= settle:
                return f"{count} of {one.hint} announced instances are here", 0.0
            wait = settle - quiet
        if rule.quiet_seconds is None:
            return "", wait
        patience = rule.quiet_seconds if not one.broken_by else rule.interrupted_timeout()
        if quiet < patience:
            return "", min(wait, patience - quiet)
        after = f" after {one.broken_by} broke off" if one.broken_by else ""
        of = f", {count} of {one.hint} announced instances are here" if one.hint is not None else ""
        return f"nothing has come for {patience:g} s{after}{of}", 0.0
