"""A `semiseg serve` of a bundle that draws thresholds, for the scripts beside this; to be run in the project's folder.

The bundle is the tests': its right answer is known for every scan, and how slow a window is can be chosen.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from tests.bundles import make_threshold_bundle
from tests.server.harness import RunningServer


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder."""
    with tempfile.TemporaryDirectory(prefix="semiseg-figures-") as name:
        yield Path(name)


def bundle_in(where: Path, *, window: tuple[int, int, int] = (32, 32, 32), work: int = 0) -> Path:
    return make_threshold_bundle(where / "bundle", window=window, work=work).folder


def start(
    bundle: Path, where: Path, *options: str, port: str = "0", environ: dict[str, str] | None = None
) -> RunningServer:
    server = RunningServer(bundle, where, *options, port=port, environ=environ)
    server.wait_until_ready()
    return server


def kill(server: RunningServer) -> None:
    server.stop(signal.SIGKILL)


def resident(server: RunningServer) -> float:
    """Megabytes of memory that the process has."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1e3


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def tell(**figures: object) -> None:
    print(json.dumps(figures), flush=True)
