"""Other days: by libfaketime, which tells every process another time of day.

Three things keep their own. The monotonic clock is left alone (`FAKETIME_DONT_FAKE_MONOTONIC`): glibc has waits that
libfaketime 0.9.10 does not know, and with that clock changed they would last until the changed moment. Chromium and its
driver do not start with libfaketime in them, and Orthanc waits without a pause, so their day is always today. And so is
the day of files: the system writes it down.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tests.conditions.condition import Condition, Launcher, UnavailableError, find_program, sitecustomize_environ

DAY = 24 * 3600
ZONE = "Europe/Berlin"
SECONDS_BEFORE = 30
"""How long before the change of the clocks the suite starts."""


def next_change(zone: str, after: float) -> float:
    """The next moment, in Unix seconds, at which daylight saving begins or ends in a zone.

    Raises:
        NotHereError: The machine does not know the zone, or its clocks do not change within two years.
    """
    try:
        place = ZoneInfo(zone)
    except ZoneInfoNotFoundError:
        raise UnavailableError(f"this machine has no time zone {zone} (Debian's package tzdata)") from None

    def offset(moment: float) -> timedelta | None:
        return datetime.fromtimestamp(moment, UTC).astimezone(place).utcoffset()

    day = after
    while offset(day) == offset(day + DAY):
        day += DAY
        if day > after + 730 * DAY:
            raise UnavailableError(f"the clocks of {zone} do not change")
    early, late = day, day + DAY
    while late - early > 1:
        middle = (early + late) / 2
        early, late = (middle, late) if offset(middle) == offset(day) else (early, middle)
    return float(round(late))


def launcher_at(shift: float, folder: Path, **environ: str) -> Launcher:
    """Start ``shift`` seconds from now; ``folder`` gets the programs whose day stays today."""
    path = [str(_of_today(folder / "programs")), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    faked = sitecustomize_environ(
        FAKETIME_DONT_FAKE_MONOTONIC="1", TESTS_CONDITION_SLEEP="1", PATH=os.pathsep.join(path), **environ
    )
    return Launcher((find_program("faketime"), "-f", f"{round(shift):+d}"), faked)


def _of_today(folder: Path) -> Path:
    """Scripts that start programs without libfaketime that do not work with it, and that we only talk to."""
    folder.mkdir()
    for name in ("chromium", "chromedriver", "Orthanc"):
        with contextlib.suppress(UnavailableError):
            (folder / name).write_text(f'#!/bin/sh\nexec env -u LD_PRELOAD {shlex.quote(find_program(name))} "$@"\n')
            (folder / name).chmod(0o755)
    return folder


def _in(days: int) -> Condition:
    says = {1: "one day from now", 365: "one year from now", 3652: "ten years from now"}[days]
    name = {1: "tomorrow", 365: "next-year", 3652: "ten-years"}[days]
    return Condition(name, says, lambda folder: launcher_at(days * DAY, folder))


def _across_change(folder: Path) -> Launcher:
    now = time.time()
    return launcher_at(next_change(ZONE, now) - SECONDS_BEFORE - now, folder, TZ=ZONE)


def dates() -> list[Condition]:
    """All conditions of this file."""
    change = Condition("clock-change", f"across the next change of daylight saving in {ZONE}", _across_change)
    return [*(_in(days) for days in (1, 365, 3652)), change]
