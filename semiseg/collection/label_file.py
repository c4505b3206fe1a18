"""Description of a label file: the names of its structures and the images that it refers to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pydicom
from numpy.typing import NDArray

from semiseg.volumes.dicom_file import text, value

LabelKind = Literal["SEG", "RTSTRUCT", "seg.nrrd", "label map"]


@dataclass(frozen=True)
class LabelFile:
    """A label file, from its header.

    Attributes:
        path: Path of the file.
        kind: Type of the file; a label map (NIfTI, NRRD, ...) has values but no names.
        names: Names of the structures in the file's order, each name once; empty for a label map.
        unusable: Reasons by name for structures that are not solid bodies (a point, an open line).
        instances, series, frames: SOP Instance, Series Instance and Frame of Reference UIDs that it refers to.
    """

    path: Path
    kind: LabelKind
    names: tuple[str, ...] = ()
    unusable: dict[str, str] = field(default_factory=dict)
    instances: frozenset[str] = frozenset()
    series: frozenset[str] = frozenset()
    frames: frozenset[str] = frozenset()


class LabelReader(Protocol):
    """An opened label file on the grid of its scan."""

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels (X, Y, Z) of a structure, on the scan's grid.

        Raises:
            VolumeError: The voxels cannot be determined exactly.
        """

    def notes(self, name: str) -> list[str]:
        """Return notes for the report about a structure that was read."""


def items(dataset: pydicom.Dataset, keyword: str, path: Path) -> list[pydicom.Dataset]:
    """Return the items of a sequence, none if it is absent.

    Raises:
        VolumeError: The sequence cannot be parsed.
    """
    found = value(dataset, keyword, path)
    return [item for item in found or () if isinstance(item, pydicom.Dataset)]


def texts(datasets: list[pydicom.Dataset], keyword: str, path: Path) -> Iterator[str]:
    """Yield the values of an attribute in several items, without the empty ones."""
    for dataset in datasets:
        found = text(dataset, keyword, path)
        if found:
            yield found
