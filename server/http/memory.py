"""Giving memory back: a scan takes gigabytes for seconds, and the C library would keep much of it."""

from __future__ import annotations

import contextlib
import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def share_arenas() -> None:
    """Let all threads allocate from two pools (glibc): with one for each, every thread keeps holes of its own."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


def trim() -> None:
    """Return what is free to the system (glibc)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
