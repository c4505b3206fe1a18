"""Deletion of files and folders that a server has written."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove(path: Path) -> None:
    """Delete a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def empty_folder(folder: Path) -> None:
    """Delete the content of a folder."""
    for path in folder.iterdir():
        remove(path)
