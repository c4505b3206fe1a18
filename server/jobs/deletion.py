"""Deleting what a server has made: a file, a folder, or all that lies in one."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove(path: Path) -> None:
    """Delete a file or folder, or nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def empty_folder(folder: Path) -> None:
    """Delete what lies in a folder."""
    for path in folder.iterdir():
        remove(path)
