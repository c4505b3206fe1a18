"""Detection of the NVIDIA GPU driver."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path


def nvidia_driver() -> str | None:
    """Return a line that names the driver; None if there is none (always on macOS)."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        pass
    library = ctypes.util.find_library("nvcuda") if os.name == "nt" else None
    return None if library is None else f"NVIDIA driver, {library}"
