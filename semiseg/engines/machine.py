"""What this machine's processor can do."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
BF16 = ("avx512_bf16", "amx_bf16")


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets as Linux names them; empty where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def has_any(flags: tuple[str, ...]) -> bool:
    """Whether the processor has one of these instruction sets."""
    return not processor_flags().isdisjoint(flags)
