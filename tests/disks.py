"""Small disks that a test may fill."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import skip_or_fail


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A volume of so many MB, mounted at a new folder; the test is skipped where none can be mounted."""
    folder.mkdir()
    if shutil.which("mount") is None:
        skip_or_fail("there is no program `mount`")
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        skip_or_fail(f"a small disk cannot be mounted here ({made.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
