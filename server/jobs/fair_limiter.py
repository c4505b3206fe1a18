"""A limiter of the work done at the same time that is fair between callers and keeps the place of whoever waits."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.jobs.fifo_limiter import FifoLimiter

MAX_CALLERS = 1024  # callers whose use is remembered; beyond it the one served longest ago is forgotten
WAITING_CREDIT = 0.5  # seconds of use that a second of waiting makes up for, so that no caller waits for ever


@dataclass(eq=False)
class _Ticket:
    """One place in the line of a caller; ``granted`` is set once it has its turn."""

    number: int
    queued_at: float
    granted: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Caller:
    """A caller: its tickets, when its present turns began, and the seconds of the turns that it has had."""

    used: float
    waiting: deque[_Ticket] = field(default_factory=deque)
    started: list[float] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.started

    def used_until(self, now: float) -> float:
        return self.used + sum(now - moment for moment in self.started)

    def rank(self, now: float) -> tuple[float, int]:
        """The smaller, the sooner it is served; only of a line in which somebody waits."""
        head = self.waiting[0]
        return self.used_until(now) - WAITING_CREDIT * (now - head.queued_at), head.number


class FairLimiter(FifoLimiter):
    """Gives ``count`` turns at a time; a free one goes to the waiting caller that has used them least.

    Use is counted in seconds, as in start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996): who comes anew, or
    comes back, begins where the caller that was served last began, so that nobody saves up turns and nobody is held
    to what was used while the places were free. Each caller has a line of its own, in which tickets are served in the
    order in which they were drawn, and a ticket keeps its place until its turn comes or it is withdrawn. So neither a
    caller with long scans nor a queue of a thousand jobs, which is one line, makes short requests of others wait for
    longer than until the next place is free.

    The limiter belongs to one process: a process that dies takes its tickets and its turns with it.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._lines: OrderedDict[str, _Caller] = OrderedDict()
        self._clock = 0.0  # the use of the caller that was served last, when it was
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def slot(self, line: str = "") -> Iterator[None]:
        """Have a turn in the block, however long it takes until it comes."""
        self.acquire(None, line)
        try:
            yield
        finally:
            self.release(line)

    def acquire(self, timeout: float | None, line: str = "") -> bool:
        """Wait for a turn in a line; False when none came in ``timeout`` seconds, and the place is given up then."""
        ticket = self._draw(line)
        return ticket.granted.wait(timeout) or not self._withdraw(ticket, line)

    def acquire_unless_stopped(self, stopped: Callable[[], bool], poll_interval: float, line: str = "") -> bool:
        """Wait for a turn, keeping the place, until ``stopped`` (called each ``poll_interval`` seconds) is true."""
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
        """Give a turn of a line back, to whoever is to have it next."""
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
        """Take a ticket out of its line; False when its turn has come in this moment."""
        with self._lock:
            if ticket.granted.is_set():
                return False
            self._lines[line].waiting.remove(ticket)
            return True

    def _serve(self, now: float) -> None:
        """Give out what is free; only to be called with the lock."""
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
