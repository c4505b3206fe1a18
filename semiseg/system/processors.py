"""The processors of this machine: usable number, name, instruction sets and load."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path


def usable_processors() -> int:
    """Return the number of logical processors that this process may use, at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return the load average over the last minute; None if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """Return the processor's instruction sets by their names in Linux.

    The result is empty on other systems; engines then compute in fp32, which every processor supports.
    """
    return frozenset(_from_cpuinfo("flags").split())


def processor_name() -> str:
    """Return the processor's name, such as ``AMD EPYC 9B14``; ``unknown`` if the system does not report it."""
    return _from_cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def _from_cpuinfo(key: str) -> str:
    """Return the first value of ``key`` in Linux's /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
