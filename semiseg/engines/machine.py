"""What this machine's processor and GPU are."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU and the version of its driver."""

    name: str
    driver: str


def gpu() -> Gpu | None:
    """The machine's GPU as nvidia-smi tells it; None where there is none, or nvidia-smi does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        name, driver = answer.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return Gpu(name.strip(), driver.strip())
