"""Structures from a label map (NIfTI, NRRD, ...) that has the scan's own voxels, in whatever order of axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.grid_matching import reorder_to_grid
from semiseg.errors import VolumeError
from semiseg.volumes.image_files import read_image_file
from semiseg.volumes.nifti import to_label_map
from semiseg.volumes.volume import Volume


class LabelMapReader:
    """A label map, opened on the grid of its scan.

    Args:
        path: the file.
        grid: the scan.
        value_of: the values that structures have in the file, by their names.
        strict: true refuses values that have no name; a file that nobody named as a label may be another image.

    Raises:
        VolumeError: not a label map, on another grid, or with values that cannot be labels.
    """

    def __init__(self, path: Path, grid: Volume, value_of: Mapping[str, int], *, strict: bool) -> None:
        self._value_of = value_of
        stored = read_image_file(path)
        self.file_warnings = tuple(remark.text for remark in stored.warnings)
        label = to_label_map(path, stored)
        try:
            self._array = reorder_to_grid(grid, label)
        except VolumeError as error:
            raise VolumeError(f"{path}: {error}") from error
        low, high = int(self._array.min()), int(self._array.max())
        if low < 0 or high > 255:
            raise VolumeError(f"{path}: values from {low} to {high} are no labels (1 to 255); is this an image?")
        self.unknown_values = sorted({int(v) for v in np.unique(self._array)} - {0, *value_of.values()})
        if strict and self.unknown_values:
            values = ", ".join(map(str, self.unknown_values[:8]))
            raise VolumeError(
                f"{path}: holds the value(s) {values}, which --labels does not name; name the file in the CSV of "
                f"--matches if it is a label map of which only some values are wanted."
            )

    def mask(self, name: str) -> NDArray[np.bool_]:
        """The voxels (X, Y, Z) that have the value of ``name``."""
        return np.asarray(self._array == self._value_of[name])

    def notes(self, name: str) -> list[str]:
        """Nothing: a label map says no more than its values."""
        return []
