"""Memory of the machine and of this process, in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def physical_memory() -> int | None:
    """Return the machine's physical memory; None if the system does not report it."""
    if hasattr(os, "sysconf"):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return _windows_memory()


def resident_memory() -> int | None:
    """Return the memory that this process uses now (resident set); None on systems other than Linux."""
    return _from_status("VmRSS")


def peak_memory() -> int | None:
    """Return the peak memory of this process since its start or :func:`reset_peak_memory`; None except on Linux."""
    return _from_status("VmHWM")


def reset_peak_memory() -> None:
    """Reset the peak of :func:`peak_memory` to the present use; no effect on systems other than Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def limit_malloc_arenas() -> None:
    """Limit glibc to two malloc arenas; with one per thread, each thread would keep unused memory of its own."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # TypeError: CDLL(None) does not work on Windows
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


def release_free_memory() -> None:
    """Return free memory to the system (glibc), which the C library would otherwise keep after a large scan."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _from_status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else 1024 * int(found.split()[1])


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *(
            (name, ctypes.c_uint64)
            for name in ("total", "free", "total_paged", "free_paged", "total_virtual", "free_virtual", "extended")
        ),
    )


def _windows_memory() -> int | None:
    library = getattr(ctypes, "windll", None)
    if library is None:
        return None
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    return int(status.total) if library.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
