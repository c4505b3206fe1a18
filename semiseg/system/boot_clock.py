"""A clock that nobody sets, and the span in which its readings can be compared.

Linux: CLOCK_BOOTTIME, the seconds since the machine was started, its sleep included; the span is one start of the
machine, which the kernel names. All processes of the machine share both.

Elsewhere: the monotonic clock; the span is this process. Neither macOS nor Windows names a start of the machine in a
way that could be relied on and tried here, and deriving it from the time of day would join or part spans whenever the
time of day is set. So a reading of another process counts as one of another start: to a queue all leases and delays of
an earlier process are over, which is right as long as one process at a time works on it. The server's state folder is
locked for that (:mod:`semiseg.system.file_locks`). The gateway, whose queue several processes use, needs Linux.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_THIS_PROCESS = f"process-{secrets.token_hex(16)}"


def seconds() -> float:
    """The reading of the clock; only differences within one :func:`boot_id` mean anything."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else float(getattr(time, "clock_gettime")(clock))  # noqa: B009 - Linux only


def boot_id() -> str:
    """The name of the span in which readings can be compared."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return _THIS_PROCESS
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # a sandbox that shows little of /proc
        return _THIS_PROCESS
