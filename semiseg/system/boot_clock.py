"""A monotonic clock, and an identifier of the period in which its readings can be compared.

Linux: the clock is CLOCK_BOOTTIME, the seconds since the machine was booted, including sleep. The period is one boot of
the machine, which the kernel identifies. All processes of the machine share both.

Other systems: the clock is the monotonic clock, and the period is the life of this process. Neither macOS nor Windows
identifies a boot in a way that could be relied on and tested here, and an identifier derived from the time of day would
change whenever the time of day is set. A reading of another process therefore counts as one of another boot: a queue
treats all leases and delays of an earlier process as expired, which is correct as long as only one process at a time
uses the queue. The server locks its state folder for this reason (:mod:`semiseg.system.file_locks`). The gateway needs
Linux, because several processes use its queue.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_THIS_PROCESS = f"process-{secrets.token_hex(16)}"


def seconds() -> float:
    """Return the time of the clock in seconds; only differences within one :func:`boot_id` are meaningful."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else float(getattr(time, "clock_gettime")(clock))  # noqa: B009 - Linux only


def boot_id() -> str:
    """Return the identifier of the period in which readings can be compared."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return _THIS_PROCESS
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # a sandbox that hides parts of /proc
        return _THIS_PROCESS
