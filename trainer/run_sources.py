"""Paths of a run's scans, stored as ``sources.json`` in the run folder so that later commands find them.

The file contains paths of this machine. It stays in the run folder: ``run.json`` and bundles never contain it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.system.durable_files import replace_file
from trainer.cases import PreparedCase

SOURCES_FILE = "sources.json"


@dataclass(frozen=True)
class RunSources:
    """The dataset that a run was trained on, and its preprocessed scans.

    Attributes:
        data: Folder of the dataset.
        cache: Folder of the preprocessed scans.
        images: File name in ``cache`` of each training scan, by case id. It identifies the run's files in a cache that
            several runs share.
    """

    data: Path
    cache: Path
    images: Mapping[str, str]

    @classmethod
    def from_cases(cls, data: Path, cache: Path, cases: Mapping[str, PreparedCase]) -> RunSources:
        """Create the sources from preprocessed training scans."""
        files = {name: case.image.filename for name, case in cases.items() if isinstance(case.image, np.memmap)}
        images = {name: Path(str(file)).name for name, file in files.items()}
        return cls(data.resolve(), cache.resolve(), images)

    @property
    def cached(self) -> list[Path]:
        """The files of the preprocessed scans that still exist."""
        return [file for name in self.images.values() if (file := self.cache / name).is_file()]

    def write(self, run: Path) -> None:
        """Write ``sources.json`` into the folder of the run.

        Each path is written both absolute and relative to the run, so that the folders are found after the run and its
        data have been moved or mounted together.
        """
        document = {
            "data": _written(self.data, run),
            "cache": _written(self.cache, run),
            "images": dict(self.images),
        }
        replace_file(run / SOURCES_FILE, (json.dumps(document, indent=1) + "\n").encode())


def read_sources(run: Path) -> RunSources | None:
    """Read the sources of a run; None if there are none, as in runs of earlier versions, or if they are unreadable."""
    try:
        document = json.loads((run / SOURCES_FILE).read_text(encoding="utf-8"))
        images = {str(case): Path(str(name)).name for case, name in document["images"].items()}
        return RunSources(_found(document["data"], run), _found(document["cache"], run), images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _written(folder: Path, run: Path) -> dict[str, str]:
    written = {"absolute": str(folder)}
    with contextlib.suppress(ValueError):  # on Windows, there is no relative path to another drive
        written["relative"] = Path(os.path.relpath(folder, run.resolve())).as_posix()
    return written


def _found(written: Mapping[str, Any], run: Path) -> Path:
    """Return the folder at its absolute path, or else at its path relative to the run."""
    absolute = Path(str(written["absolute"]))
    beside = (run / str(written.get("relative", "."))).resolve()
    return beside if not absolute.is_dir() and "relative" in written and beside.is_dir() else absolute
