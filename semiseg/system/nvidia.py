"""Whether this machine has a driver for NVIDIA's GPUs."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path


def nvidia_driver() -> str | None:
    """A line that names the driver; None where there is none (macOS has none)."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        pass
    library = ctypes.util.find_library("nvcuda") if os.name == "nt" else None
    return None if library is None else f"NVIDIA driver, {library}"
