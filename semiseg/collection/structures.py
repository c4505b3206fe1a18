"""Label values of structures, and merging of overlapping masks into one label map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.dataset.dataset_json import IGNORE_NAME
from semiseg.errors import DatasetError, InputError, VolumeError
from semiseg.volumes.segmentation import Segment

Overlap = Literal["refuse", "later", "earlier", "regions"]
DEFAULT_IGNORE_VALUE = 255


def normalise_name(name: str) -> str:
    """Return a name in a form in which spellings that differ in case and spaces are equal."""
    return " ".join(name.split()).casefold()


@dataclass(frozen=True)
class PartialLabels:
    """Rule for scans that are outlined on some of their slices: the voxels of the other slices are ignored.

    Attributes:
        marker: Name of a structure that marks slices as outlined on which no other structure is; "" for none.
    """

    marker: str = ""

    def is_marker(self, name: str) -> bool:
        """Return True if a structure of a label file is the marker."""
        return bool(self.marker) and normalise_name(name) == normalise_name(self.marker)


@dataclass
class Structures:
    """The structures of a dataset and their label values; merging masks adds to ``codes`` and ``present``.

    Attributes:
        value_of: Label values by name, ascending; of several names with one value (synonyms), the dataset uses the
            first.
        overlap: Rule for a voxel that belongs to two structures: the label of the scan is refused (refuse), the voxel
            gets the higher value (later) or the lower value (earlier), or a value of its own (regions).
        codes: Values of the structures to which a voxel with a label value belongs; grows if regions overlap.
        present: Values of the structures of which some scan holds a voxel.
        ignore: Label value of unannotated voxels; None if the dataset has none.
        partial: Rule for slices without an outline; None if their voxels are background.
    """

    value_of: Mapping[str, int]
    overlap: Overlap = "refuse"
    codes: dict[int, frozenset[int]] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    ignore: int | None = None
    partial: PartialLabels | None = None

    def __post_init__(self) -> None:
        self._by_spelling = {normalise_name(name): value for name, value in self.value_of.items()}
        for value in self.value_of.values():
            self.codes.setdefault(value, frozenset({value}))

    @property
    def names(self) -> dict[int, str]:
        """Name of each value in the dataset."""
        out: dict[int, str] = {}
        for name, value in self.value_of.items():
            out.setdefault(value, name)
        return dict(sorted(out.items()))

    def value(self, name: str) -> int | None:
        """Return the value of a structure for any spelling of its name; None if it is not selected."""
        return self._by_spelling.get(normalise_name(name))

    def merge_masks(
        self, masks: Iterable[tuple[int, NDArray[np.bool_]]], shape: tuple[int, int, int]
    ) -> NDArray[np.uint8]:
        """Merge ``masks``, given as (value, mask (X, Y, Z)) in ascending order of their values, into one label map.

        Raises:
            VolumeError: Structures overlap and ``overlap`` is "refuse"; the message gives the numbers of voxels.
        """
        out = np.zeros(shape, dtype=np.uint8)
        clashes: dict[tuple[int, int], int] = {}
        for value, mask in masks:
            below = out[mask]
            if self.overlap == "regions":
                out[mask] = self._combined(below, value)
                continue
            for other in np.unique(below[(below != 0) & (below != value)]):
                clashes[int(other), value] = int(np.count_nonzero(below == other))
            out[mask] = value if self.overlap == "later" else np.where(below == 0, value, below)
        if clashes and self.overlap == "refuse":
            names = self.names
            told = "; ".join(
                f"{n} voxels belong to both '{names[a]}' and '{names[b]}'" for (a, b), n in clashes.items()
            )
            raise VolumeError(f"{told}. Select one with --overlap later or earlier, or keep both with regions.")
        for code in np.unique(out[out != 0]):
            self.present |= self.codes[int(code)]
        return out

    def labels_entry(self) -> dict[str, Any]:
        """Return ``labels`` of dataset.json: {"1": name}, or {name: [values]} if voxels may belong to several."""
        if all(len(parts) == 1 for parts in self.codes.values()):
            names = {0: "background", **self._kept(), **({} if self.ignore is None else {self.ignore: IGNORE_NAME})}
            return {str(value): name for value, name in names.items()}
        regions = {
            name: sorted(code for code, parts in self.codes.items() if value in parts)
            for value, name in self._kept().items()
        }
        return {"background": 0, **regions, **({} if self.ignore is None else {IGNORE_NAME: self.ignore})}

    def require_ignore_value(self) -> int:
        """Return the label value for voxels that were not outlined.

        Raises:
            VolumeError: The value is that of a structure.
        """
        value = DEFAULT_IGNORE_VALUE if self.ignore is None else self.ignore
        if value in self.codes:
            raise VolumeError(
                f"The value {value} stands for voxels that were not outlined, and is that of a structure; give it "
                "another value with --labels."
            )
        return value

    def ignore_slices(self, label: NDArray[np.uint8], outlined: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return a label map (X, Y, Z) whose slices that are not outlined (Z,) have the value of unannotated voxels.

        Raises:
            VolumeError: See :meth:`require_ignore_value`.
        """
        if outlined.all():
            return label
        self.ignore = self.require_ignore_value()
        return np.where(outlined, label, np.uint8(self.ignore))

    def absent_names(self) -> list[str]:
        """Return the names of structures of which no scan holds a voxel."""
        return [name for value, name in self.names.items() if value not in self.present]

    def _kept(self) -> dict[int, str]:
        # If no scan is labelled yet, all names are kept for later labels; else a name without voxels cannot be learned.
        return {v: name for v, name in self.names.items() if v in self.present} if self.present else self.names

    def _combined(self, below: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
        """Return the codes of voxels that had ``below`` and now belong to ``value`` too."""
        code_of = {parts: code for code, parts in self.codes.items()}
        table = np.zeros(256, dtype=np.uint8)
        for code in np.unique(below):
            parts = self.codes.get(int(code), frozenset()) | {value}
            if parts not in code_of:
                free = max(self.codes) + 1
                free += free == self.ignore
                if free > 255:
                    raise VolumeError("More than 255 combinations of overlapping structures do not fit a label map.")
                self.codes[free] = parts
                code_of[parts] = free
            table[code] = code_of[parts]
        return table[below]


def parse_labels(text: str) -> dict[str, int]:
    """Parse ``"liver=1,tumour=2"`` into values by name, ascending by value; names with the same value are synonyms.

    Raises:
        InputError: The text does not have this format, or a name occurs twice.
    """
    table: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        name = " ".join(name.split())
        if not equals or not name or not number.strip().isdecimal() or not 1 <= int(number) <= 255:
            raise InputError(f"--labels must be NAME=1,OTHER=2 with values from 1 to 255, not '{part.strip()}'.")
        if normalise_name(name) in map(normalise_name, table):
            raise InputError(f"--labels names '{name}' twice.")
        if normalise_name(name) in ("background", IGNORE_NAME) or len(name) > 64:
            raise InputError(f"--labels: '{name[:64]}' cannot be the name of a structure.")
        table[name] = int(number)
    return dict(sorted(table.items(), key=lambda item: item[1]))


def number_names(names: Iterable[str]) -> dict[str, int]:
    """Number names 1, 2, ... in sorted order; the first spelling of each name is used for all of its spellings.

    Raises:
        InputError: There are more than 255 names.
    """
    first: dict[str, str] = {}
    for name in sorted(names, key=lambda n: (normalise_name(n), n)):
        first.setdefault(normalise_name(name), " ".join(name.split()))
    if len(first) > 255:
        raise InputError(f"The labels name {len(first)} structures; choose at most 255 of them with --labels.")
    return {name: value for value, name in enumerate(first.values(), start=1)}


def extend_structures(
    segments: Iterable[Segment], labels: Mapping[str, int] | None, overlap: Overlap, ignore: int | None = None
) -> Structures:
    """Return the structures of a dataset that is to be extended, with those that ``labels`` adds.

    Args:
        segments: Segments of the dataset.
        labels: Label values by name that the user gives; None for none.
        overlap: Rule for a voxel that belongs to two structures.
        ignore: The dataset's label value of unannotated voxels; None if it has none.

    Raises:
        DatasetError: ``labels`` gives a structure of the dataset another value or one that is taken, or the dataset's
            regions are not combinations of single structures, or they overlap and ``overlap`` is not "regions".
    """
    found = tuple(segments)
    parts_of: dict[int, frozenset[str]] = {}
    for value in sorted({v for s in found for v in s.reference_values}):
        parts_of[value] = frozenset(s.name for s in found if value in s.reference_values)
    value_by_name = {next(iter(parts)): value for value, parts in parts_of.items() if len(parts) == 1}
    missing = [s.name for s in found if s.name not in value_by_name]
    if missing:
        raise DatasetError(f"Region '{missing[0]}' of the dataset has no value of its own, so it cannot be extended.")
    table = dict(sorted(value_by_name.items(), key=lambda item: item[1]))
    spelled = {normalise_name(name): value for name, value in table.items()}
    for name, value in (labels or {}).items():
        taken = value == ignore or (value in parts_of and len(parts_of[value]) > 1)
        if taken or spelled.get(normalise_name(name), value) != value:
            raise DatasetError(f"--labels gives '{name}' the value {value}, which is taken or not the dataset's.")
        if normalise_name(name) not in spelled:
            table[name] = value
    codes = {value: frozenset(value_by_name[name] for name in parts) for value, parts in parts_of.items()}
    regions = any(len(parts) > 1 for parts in codes.values())
    if regions and overlap != "regions":
        raise DatasetError("The dataset holds regions that overlap; extend it with --overlap regions.")
    ordered = dict(sorted(table.items(), key=lambda item: item[1]))
    return Structures(ordered, overlap, codes, set(value_by_name.values()), ignore)
