"""Reads structures from a label map (NIfTI, NRRD, ...) that has the scan's own voxels, in any order of axes."""

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
        path: Path of the file.
        grid: Grid of the scan.
        value_of: Values of the structures in the file, by their names.
        strict: If True, values without a name are refused; a file that the user did not name as a label may be another
            image.

    Raises:
        VolumeError: The file is not a label map, lies on another grid, or has values that cannot be labels.
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
            raise VolumeError(f"{path}: values from {low} to {high} are not labels (1 to 255); is this an image?")
        self.unknown_values = sorted({int(v) for v in np.unique(self._array)} - {0, *value_of.values()})
        if strict and self.unknown_values:
            values = ", ".join(map(str, self.unknown_values[:8]))
            raise VolumeError(
                f"{path}: holds the value(s) {values}, which --labels does not name; name the file in the CSV of "
                f"--matches if only some values of the label map are to be collected."
            )

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels (X, Y, Z) that have the value of ``name``."""
        return np.asarray(self._array == self._value_of[name])

    def notes(self, name: str) -> list[str]:
        """Return no notes: a label map holds nothing besides its values."""
        return []
