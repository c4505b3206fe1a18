"""What a source folder has to offer: the scans of the dataset to be, its channels, and what its labels mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiseg.collection.report import ReportEntry
from semiseg.collection.scans import SourceScan
from semiseg.collection.structures import Overlap


@dataclass(frozen=True)
class CollectOptions:
    """What the person who collects asked for.

    Attributes:
        labels: label value by name of structure; None numbers the names that are there.
        matches: the CSV that says which label belongs to which scan.
        overlap: what becomes of voxels that belong to two structures.
        modalities: take series of these DICOM modalities only; () for all, which must then be of one.
        descriptions: take series whose description matches one of these patterns; () for all.
        channels: pattern of the description by channel, in the order of the channels; {} makes each series a case.
    """

    labels: Mapping[str, int] | None = None
    matches: Path | None = None
    overlap: Overlap = "refuse"
    modalities: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    channels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectionPlan:
    """Scans to read, in an order that is the same every time.

    Attributes:
        channels: names of the channels.
        scans: what becomes cases.
        labels: ``labels`` of dataset.json, to be asked for when all scans are read.
        absent: names of the structures of which no scan holds a voxel, likewise.
        entries: what was refused or left out before any scan was read.
        painted: ``regions_class_order`` of dataset.json, where the source has one.
    """

    channels: tuple[str, ...]
    scans: tuple[SourceScan, ...]
    labels: Callable[[], dict[str, Any]]
    absent: Callable[[], list[str]]
    entries: tuple[ReportEntry, ...]
    painted: tuple[int, ...] = ()
