"""DICOM series of which each slice is changed by a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom

SLICE_COUNT = 12
SliceEdit = Callable[[pydicom.Dataset, int], Any]


def edit_slices(files: list[Path], change: SliceEdit) -> None:
    """Change each slice, given its number along the normal."""
    for k, path in enumerate(sorted(files, key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])):
        dataset = pydicom.dcmread(path)
        change(dataset, k)
        dataset.save_as(path)


def cycle_values(keyword: str, *values: Any) -> SliceEdit:
    """Gives the slices in turn one of ``values``; None removes the attribute."""

    def change(dataset: pydicom.Dataset, k: int) -> None:
        value = values[k % len(values)]
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)

    return change
