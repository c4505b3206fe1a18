"""Waiting for what another process or thread does, without a bet on how fast this machine is today."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(
    condition: Callable[[], object], seconds: float = 120.0, describe: Callable[[], object] = lambda: ""
) -> None:
    """Wait until ``condition`` holds; ``seconds`` bounds only how long a failure takes, which says ``describe()``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} seconds: {describe()}"
        time.sleep(0.02)


def paths_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files and folders below ``folder``, sorted; other processes may delete some of them meanwhile.

    ``Path.rglob`` raises FileNotFoundError then.
    """
    found = [Path(root, name) for root, folders, files in os.walk(folder) for name in folders + files]
    return sorted(path for path in found if path.match(pattern))
