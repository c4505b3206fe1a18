"""The names of a dataset's label values, and the conversion of a client's label values to those of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.dataset.dataset_json import IGNORE_NAME
from semiseg.dataset.folder import Dataset
from semiseg.errors import InputError
from semiseg.volumes.segmentation import Segment, are_overlapping, painted_values

IGNORE_COLOUR = (128, 128, 128)


@dataclass(frozen=True)
class LabelNames:
    """The segment names that annotators use.

    Attributes:
        values: Label value of each name, in ascending order. 3D Slicer numbers the segments that it sends 1, 2, ... in
            the order of its list, and reads the values of a label map in ascending order, so the list has this order.
        allowed: All values that a label map of the dataset may contain, with 0 for the background.
        paint_order: Names in the order in which they are painted into a label map.
        regions: True if the segments are regions that may overlap; each is painted over those before it.
        colours: Display colour of each name, as RGB values from 0 to 255.
    """

    values: Mapping[str, int]
    allowed: frozenset[int]
    paint_order: tuple[str, ...]
    regions: bool = False
    colours: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @classmethod
    def from_dataset(cls, dataset: Dataset, segments: Sequence[Segment] = ()) -> LabelNames:
        """Take the names from a dataset or, without a ``dataset.json``, from a model's ``segments``.

        Overlapping regions have the values with which they are painted over each other.

        Raises:
            InputError: Neither of them names a label, or a region has no value to be painted with.
        """
        named = dataset.segments or tuple(segments)
        if not named:
            raise InputError(
                f"{dataset.folder} has no dataset.json with the names of the label values, which annotators need; "
                "write one, or give a bundle with --bundle."
            )
        regions = are_overlapping(named)
        painted = painted_values(named) if regions else [segment.label for segment in named]
        table = {segment.name: value for segment, value in zip(named, painted, strict=True)}
        if dataset.ignore is not None:
            table[IGNORE_NAME] = dataset.ignore
        inside = {value for segment in named for value in segment.reference_values}
        ordered = dict(sorted(table.items(), key=lambda item: item[1]))
        colours = {segment.name: segment.colour for segment in named} | {IGNORE_NAME: IGNORE_COLOUR}
        return cls(ordered, frozenset({0, *table.values(), *inside}), tuple(table), regions, colours)

    def describe(self) -> list[dict[str, Any]]:
        """Return name, value and colour of each segment for the page."""
        return [
            {"name": name, "value": value, "colour": list(self.colours[name])} for name, value in self.values.items()
        ]

    def count(self, array: NDArray[np.uint8]) -> dict[str, int]:
        """The number of voxels of each name that occurs in a label map, in ascending order of the values."""
        counts = np.bincount(array.ravel(), minlength=256)
        return {name: int(counts[value]) for name, value in self.values.items() if counts[value]}

    def translate(self, array: NDArray[Any], label_info: Any) -> NDArray[np.uint8]:
        """Convert the values of a client's label map to those of the dataset.

        Args:
            array: Label map (X, Y, Z) of integers.
            label_info: List of ``{"name": ..., "idx": ...}`` from the client, in which ``idx`` is the value of the
                name; 3D Slicer, however, uses the position in the list as the value. None if the values are those of
                the dataset.

        Returns:
            Label map (X, Y, Z), uint8.

        Raises:
            InputError: A value has no name, or a name is not one of the dataset.
        """
        present = [int(value) for value in np.unique(array) if value != 0]
        if not label_info:
            return self._checked(array, present)
        entries = _entries(label_info)
        table = _table(entries, present)
        lookup = np.zeros(256, np.uint8)
        for value in present:
            name = table[value]
            if name not in self.values:
                raise InputError(f"The label has the segment {name[:80]!r}, but the dataset has only {self._names()}.")
            lookup[value] = self.values[name]
        return np.asarray(lookup[array.astype(np.uint8)])

    def _checked(self, array: NDArray[Any], present: Sequence[int]) -> NDArray[np.uint8]:
        unknown = [value for value in present if value not in self.allowed]
        if unknown:
            raise InputError(
                f"The label has the value {unknown[0]}, which the dataset does not have; it has {self._names()}."
            )
        return np.asarray(array.astype(np.uint8))

    def _names(self) -> str:
        return ", ".join(f"{name} ({value})" for name, value in self.values.items())


def _entries(label_info: Any) -> list[tuple[str, int | None]]:
    """The (name, value) pairs of a client's list."""
    if not isinstance(label_info, list):
        raise InputError("`label_info` must be a list of objects with a `name` and an `idx`.")
    out: list[tuple[str, int | None]] = []
    for one in label_info:
        name = one.get("name") if isinstance(one, dict) else None
        index = one.get("idx", one.get("id")) if isinstance(one, dict) else None
        if not isinstance(name, str) or not (index is None or type(index) is int):
            raise InputError("`label_info` must be a list of objects with a `name` and an `idx`.")
        out.append((name, index))
    return out


def _table(entries: Sequence[tuple[str, int | None]], present: Sequence[int]) -> dict[int, str]:
    """The name of each value: by ``idx``, or by the position in the list if only that explains all values.

    3D Slicer omits the background from its list and numbers the segments that it sends from 1, but its ``idx`` still
    counts the background.
    """
    by_index = {index: name for name, index in entries if index is not None}
    by_place = {place: name for place, (name, _) in enumerate(entries, start=1)}
    fitting = [table for table in (by_index, by_place) if all(value in table for value in present)]
    if not fitting or max(present, default=0) > 255:
        wrong = next((value for value in present if value not in by_index and value not in by_place), present[-1])
        raise InputError(f"The label has the value {wrong}, for which `label_info` has no name.")
    if any(table[value] != fitting[0][value] for table in fitting for value in present):
        raise InputError(
            "`label_info` is ambiguous: by `idx` the values mean other segments than by the order of the list. Send "
            "the segments with `idx` 1, 2, 3, ... in the order of the list."
        )
    return fitting[0]
