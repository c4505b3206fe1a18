"""A limiter of the work done at the same time that is fair between callers and keeps the place of whoever waits."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.jobs.turns import Turns

REMEMBERED = 1024  # callers whose last turn is remembered; beyond it the oldest is forgotten


@dataclass(eq=False)
class _Ticket:
    """One place in the line of a caller; ``came`` is set once it has its turn."""

    line: str
    number: int
    came: threading.Event = field(default_factory=threading.Event)


class FairLimiter(Turns):
    """Gives ``count`` turns at a time; a free one goes to the waiting caller whose last turn is longest ago.

    Each caller has a line of its own, in which tickets are served in the order in which they were drawn. A ticket keeps
    its place until its turn comes or it is withdrawn, so that asking now and then whether to go on waiting costs
    nothing. Neither a caller with many requests nor a queue of a thousand jobs, which is one line, can keep another
    caller waiting for longer than one turn of each.

    The limiter belongs to one process: a process that dies takes its tickets and its turns with it.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._lines: dict[str, deque[_Ticket]] = {}
        self._last_turn: OrderedDict[str, int] = OrderedDict()
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def one(self, line: str = "") -> Iterator[None]:
        """Have a turn in the block, however long it takes until it comes."""
        self.acquire(None, line)
        try:
            yield
        finally:
            self.release()

    def acquire(self, timeout: float | None, line: str = "") -> bool:
        """Wait for a turn in a line; False when none came in ``timeout`` seconds, and the place is given up then."""
        ticket = self._draw(line)
        return ticket.came.wait(timeout) or not self._withdraw(ticket)

    def acquire_unless(self, stopped: Callable[[], bool], every: float, line: str = "") -> bool:
        """Wait for a turn, without losing the place, until ``stopped`` says so; it is asked ``every`` seconds."""
        ticket = self._draw(line)
        try:
            while not ticket.came.wait(every):
                if stopped():
                    return not self._withdraw(ticket)
        except BaseException:
            if not self._withdraw(ticket):
                self.release()
            raise
        return True

    def release(self) -> None:
        """Give the turn back, to whoever is to have it next."""
        with self._lock:
            self._free += 1
            self._serve()

    def _draw(self, line: str) -> _Ticket:
        with self._lock:
            ticket = _Ticket(line, next(self._numbers))
            self._lines.setdefault(line, deque()).append(ticket)
            self._serve()
        return ticket

    def _withdraw(self, ticket: _Ticket) -> bool:
        """Take a ticket out of its line; False when its turn has come in this moment."""
        with self._lock:
            if ticket.came.is_set():
                return False
            self._lines[ticket.line].remove(ticket)
            self._drop_if_empty(ticket.line)
            return True

    def _serve(self) -> None:
        """Give out what is free; only to be called with the lock."""
        while self._free and self._lines:
            line = min(self._lines, key=lambda name: (self._last_turn.get(name, 0), self._lines[name][0].number))
            ticket = self._lines[line].popleft()
            self._drop_if_empty(line)
            self._last_turn[line] = next(self._numbers)
            self._last_turn.move_to_end(line)
            if len(self._last_turn) > REMEMBERED:
                self._last_turn.popitem(last=False)
            self._free -= 1
            ticket.came.set()

    def _drop_if_empty(self, line: str) -> None:
        if not self._lines[line]:
            del self._lines[line]
