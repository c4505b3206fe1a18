"""The limiter of scans at the same time: nobody loses a place by waiting, and no caller holds up another."""

from __future__ import annotations

import threading
import time

import pytest

from server.jobs.fair_limiter import REMEMBERED, FairLimiter
from tests.waiting import until


class Caller(threading.Thread):
    """Waits for a turn in a line, and holds it until it is told to give it back."""

    def __init__(self, limiter: FairLimiter, line: str, told: list[str], *, every: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.limiter, self.line, self.told, self.every = limiter, line, told, every
        self.stop, self.done = threading.Event(), threading.Event()
        self.start()
        until(lambda: self in told or self._waits())

    def _waits(self) -> bool:
        return not self.is_alive() or self.line in self.told or self.line in self.limiter._lines

    def run(self) -> None:
        if self.limiter.acquire_unless(self.stop.is_set, self.every, self.line):
            self.told.append(self.line)
            self.done.wait(60)
            self.limiter.release()


def test_waiting_caller_keeps_its_place_however_often_it_asks_whether_to_go_on():
    limiter, told = FairLimiter(1), list[str]()
    holder = Caller(limiter, "holder", told)
    first = Caller(limiter, "first", told, every=0.01)  # asks a hundred times while the second one asks once
    second = Caller(limiter, "second", told, every=10)
    time.sleep(0.5)
    holder.done.set()
    until(lambda: len(told) == 2)
    assert told == ["holder", "first"]
    first.done.set()
    second.done.set()
    until(lambda: told == ["holder", "first", "second"])


def test_line_of_many_lets_another_caller_have_the_next_turn():
    limiter, told = FairLimiter(1), list[str]()
    many = [Caller(limiter, "many", told) for _ in range(4)]
    time.sleep(0.2)
    one = Caller(limiter, "one", told)
    for caller in (*many, one):
        caller.done.set()
        time.sleep(0.1)
    until(lambda: len(told) == 5)
    assert told[:2] == ["many", "one"]


def test_two_callers_that_come_back_at_once_do_not_starve_a_third():
    limiter, told, ending = FairLimiter(1), list[str](), threading.Event()

    def restless(line: str) -> None:
        while not ending.is_set():
            with limiter.one(line):
                told.append(line)
                time.sleep(0.01)

    threads = [threading.Thread(target=restless, args=(line,)) for line in ("a", "b", "jobs")]
    for thread in threads:
        thread.start()
    until(lambda: len(told) >= 60)
    ending.set()
    for thread in threads:
        thread.join()
    assert all(told.count(line) >= 15 for line in ("a", "b", "jobs")), told


def test_caller_that_goes_away_while_waiting_leaves_no_place_taken():
    limiter, told = FairLimiter(1), list[str]()
    holder = Caller(limiter, "holder", told)
    gone = Caller(limiter, "gone", told)
    gone.stop.set()
    gone.join(60)
    assert not limiter.acquire(0.01, "late")
    holder.done.set()
    holder.join(60)
    assert limiter.acquire(60, "next")
    limiter.release()
    assert not limiter._lines and limiter._free == 1 and told == ["holder"]


def test_error_while_waiting_gives_the_place_up():
    limiter = FairLimiter(1)
    assert limiter.acquire(0)

    def stopped() -> bool:
        raise RuntimeError("asked")

    with pytest.raises(RuntimeError):
        limiter.acquire_unless(stopped, 0.01, "a")
    limiter.release()
    assert limiter.acquire(0, "b")


def test_callers_that_are_remembered_are_bounded():
    limiter = FairLimiter(1)
    for number in range(2 * REMEMBERED):
        with limiter.one(str(number)):
            pass
    assert len(limiter._last_turn) == REMEMBERED
