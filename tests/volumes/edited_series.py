"""DICOM series of which each slice is changed by a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom

COUNT = 12
Change = Callable[[pydicom.Dataset, int], Any]


def edit(files: list[Path], change: Change) -> None:
    """Change each slice, given its number along the normal."""
    for k, path in enumerate(sorted(files, key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])):
        dataset = pydicom.dcmread(path)
        change(dataset, k)
        dataset.save_as(path)


def setting(keyword: str, *values: Any) -> Change:
    """Gives the slices in turn one of ``values``; None removes the attribute."""

    def change(dataset: pydicom.Dataset, k: int) -> None:
        value = values[k % len(values)]
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)

    return change
