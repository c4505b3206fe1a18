"""The processors of this machine: how many this process may use, what they are, and how busy they are."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path


def usable_processors() -> int:
    """The number of logical processors that this process may use, at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that ran or waited to run, averaged over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets by the names that Linux gives them.

    Empty on other systems: an engine then computes in fp32, which every processor does.
    """
    return frozenset(_from_cpuinfo("flags").split())


def processor_name() -> str:
    """The processor's name, such as ``AMD EPYC 9B14``; ``unknown`` where the system does not tell."""
    return _from_cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def _from_cpuinfo(key: str) -> str:
    """The first value of ``key`` in Linux's description of the processors; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
