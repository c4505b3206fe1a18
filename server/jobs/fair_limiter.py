"""A concurrency limiter that is fair between callers and whose waiting callers keep their position."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.jobs.fifo_limiter import FifoLimiter

MAX_CALLERS = 1024  # callers whose usage is kept; beyond it the one served longest ago is dropped
WAITING_CREDIT = 0.5  # seconds of usage that one second of waiting offsets, so that no caller waits for ever


@dataclass(eq=False)
class _Ticket:
    """A position in the queue of a caller; ``granted`` is set once it has a slot."""

    number: int
    queued_at: float
    granted: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Caller:
    """A caller: its waiting tickets, the start times of its current slots, and the seconds used by finished ones."""

    used: float
    waiting: deque[_Ticket] = field(default_factory=deque)
    started: list[float] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.started

    def used_until(self, now: float) -> float:
        return self.used + sum(now - moment for moment in self.started)

    def rank(self, now: float) -> tuple[float, int]:
        """Sort key of a caller with waiting tickets; the caller with the smallest rank is served next."""
        head = self.waiting[0]
        return self.used_until(now) - WAITING_CREDIT * (now - head.queued_at), head.number


class FairLimiter(FifoLimiter):
    """Grants ``count`` slots at a time; a free slot goes to the waiting caller that has used the least slot time.

    Usage is counted in seconds, as in start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996). A caller that is
    new, or returns after a pause, starts with the usage that the caller served last had when it was served: idle
    callers save up no credit, and usage while slots were free is not held against a caller. Each caller has a queue of
    its own (``line``), in which tickets are served in the order of their creation; a ticket keeps its position until it
    is granted or withdrawn. Therefore neither a caller with long scans nor the queue of a thousand jobs, which counts
    as one caller, makes short requests of others wait for longer than until the next slot is free.

    The limiter belongs to one process: its tickets and slots end with the process.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._lines: OrderedDict[str, _Caller] = OrderedDict()
        self._clock = 0.0  # usage of the caller that was served last, at the time of serving
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def slot(self, line: str = "") -> Iterator[None]:
        """Hold a slot of the caller ``line`` during the block; waits without limit until one is granted."""
        self.acquire(None, line)
        try:
            yield
        finally:
            self.release(line)

    def acquire(self, timeout: float | None, line: str = "") -> bool:
        """Wait for a slot; after ``timeout`` seconds give up the position in the queue and return False."""
        ticket = self._draw(line)
        return ticket.granted.wait(timeout) or not self._withdraw(ticket, line)

    def acquire_unless_stopped(self, stopped: Callable[[], bool], poll_interval: float, line: str = "") -> bool:
        """Wait for a slot, keeping the position, until ``stopped`` (called each ``poll_interval`` seconds) is true."""
        ticket = self._draw(line)
        try:
            while not ticket.granted.wait(poll_interval):
                if stopped():
                    return not self._withdraw(ticket, line)
        except BaseException:
            if not self._withdraw(ticket, line):
                self.release(line)
            raise
        return True

    def release(self, line: str = "") -> None:
        """Return a slot of a caller and grant it to the next one."""
        with self._lock:
            now, mine = time.monotonic(), self._lines[line]
            mine.used += now - mine.started.pop()
            self._free += 1
            self._serve(now)
            if all(one.idle for one in self._lines.values()):
                self._clock = max(one.used for one in self._lines.values())
            self._forget()

    def _draw(self, line: str) -> _Ticket:
        with self._lock:
            now = time.monotonic()
            mine = self._lines.setdefault(line, _Caller(self._clock))
            if mine.idle:
                mine.used = max(mine.used, self._clock)
            ticket = _Ticket(next(self._numbers), now)
            mine.waiting.append(ticket)
            self._serve(now)
        return ticket

    def _withdraw(self, ticket: _Ticket, line: str) -> bool:
        """Remove a ticket from its queue; False if it has been granted meanwhile."""
        with self._lock:
            if ticket.granted.is_set():
                return False
            self._lines[line].waiting.remove(ticket)
            return True

    def _serve(self, now: float) -> None:
        """Grant the free slots; the caller must hold the lock."""
        while self._free and (wanting := [name for name, one in self._lines.items() if one.waiting]):
            name = min(wanting, key=lambda one: self._lines[one].rank(now))
            line = self._lines[name]
            self._clock = max(self._clock, line.used_until(now))
            ticket = line.waiting.popleft()
            line.started.append(now)
            self._lines.move_to_end(name)
            self._free -= 1
            ticket.granted.set()

    def _forget(self) -> None:
        for name in [name for name, one in self._lines.items() if one.idle][: len(self._lines) - MAX_CALLERS]:
            del self._lines[name]
