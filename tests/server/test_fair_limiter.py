"""The limiter of scans at the same time: nobody loses a place by waiting, and no caller holds up another."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from server.jobs.fair_limiter import MAX_CALLERS, FairLimiter
from tests.polling import wait_until


class Caller(threading.Thread):
    """Waits for a turn in a line, and holds it until it is told to give it back."""

    def __init__(self, limiter: FairLimiter, line: str, told: list[str], *, every: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.limiter, self.line, self.told, self.every = limiter, line, told, every
        self.asked, self.stop, self.done = threading.Event(), threading.Event(), threading.Event()
        self.start()
        wait_until(lambda: self.asked.is_set() or line in told)

    def _stopped(self) -> bool:
        self.asked.set()
        return self.stop.is_set()

    def run(self) -> None:
        if self.limiter.acquire_unless_stopped(self._stopped, self.every, self.line):
            self.told.append(self.line)
            self.done.wait(60)
            self.limiter.release(self.line)


def test_waiting_caller_keeps_its_place_however_often_it_asks_whether_to_go_on():
    limiter, told = FairLimiter(1), list[str]()
    holder = Caller(limiter, "holder", told)
    first = Caller(limiter, "first", told, every=0.01)  # asks thirty times while the second one asks once
    second = Caller(limiter, "second", told, every=0.3)
    time.sleep(0.5)
    holder.done.set()
    wait_until(lambda: len(told) == 2)
    assert told == ["holder", "first"]
    first.done.set()
    second.done.set()
    wait_until(lambda: told == ["holder", "first", "second"])


def test_caller_that_used_little_is_served_before_a_line_of_long_turns():
    limiter, told = FairLimiter(1), list[str]()
    long = [Caller(limiter, "long", told) for _ in range(3)]
    time.sleep(0.3)  # that long it has the place by now
    short = [Caller(limiter, "short", told) for _ in range(4)]
    for caller in short:
        caller.done.set()
    long[0].done.set()
    wait_until(lambda: len(told) >= 6)
    assert told == ["long", *["short"] * 4, "long"]
    for caller in long:
        caller.done.set()


def test_long_turn_is_not_put_off_for_ever_by_short_ones_of_others():
    limiter = FairLimiter(1)
    with limiter.slot("long"):
        time.sleep(1)
    ending, callers = threading.Event(), itertools.count()

    def restless() -> None:  # each time as somebody who was never here
        while not ending.is_set():
            with limiter.slot(f"new {next(callers)}"):
                time.sleep(0.02)

    threads = [threading.Thread(target=restless) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert limiter.acquire(20, "long")
        limiter.release("long")
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def test_what_was_used_while_nobody_else_was_there_is_not_held_against_a_caller():
    limiter, told = FairLimiter(1), list[str]()
    with limiter.slot("before"):
        time.sleep(0.5)
    holder = Caller(limiter, "holder", told)
    before = Caller(limiter, "before", told)
    time.sleep(0.1)
    new = Caller(limiter, "new", told)
    for caller in (holder, before, new):
        caller.done.set()
    wait_until(lambda: len(told) == 3)
    assert told == ["holder", "before", "new"]


def test_two_callers_that_come_back_at_once_do_not_starve_a_third():
    limiter, told, ending = FairLimiter(1), list[str](), threading.Event()

    def restless(line: str) -> None:
        while not ending.is_set():
            with limiter.slot(line):
                told.append(line)
                time.sleep(0.01)

    threads = [threading.Thread(target=restless, args=(line,)) for line in ("a", "b", "jobs")]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(told) >= 60)
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
    limiter.release("next")
    assert limiter._free == 1 and told == ["holder"]


def test_error_while_waiting_gives_the_place_up():
    limiter = FairLimiter(1)
    assert limiter.acquire(0)

    def stopped() -> bool:
        raise RuntimeError("asked")

    with pytest.raises(RuntimeError):
        limiter.acquire_unless_stopped(stopped, 0.01, "a")
    limiter.release()
    assert limiter.acquire(0, "b")


def test_callers_that_are_remembered_are_bounded():
    limiter = FairLimiter(1)
    for number in range(2 * MAX_CALLERS):
        with limiter.slot(str(number)):
            pass
    assert len(limiter._lines) <= MAX_CALLERS
