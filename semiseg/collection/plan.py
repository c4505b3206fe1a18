"""Options and plan of a collection: the scans, channels and label values of the dataset to make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiseg.collection.report import ReportEntry
from semiseg.collection.scans import SourceScan
from semiseg.collection.structures import Overlap, PartialLabels


@dataclass(frozen=True)
class CollectOptions:
    """Selection of scans, channels and structures by the user.

    Attributes:
        labels: Label values by name of the structure; None to number the names in the label files.
        matches: CSV file that assigns labels to scans; None for none.
        overlap: Rule for voxels that belong to two structures.
        modalities: DICOM modalities of the series to collect; () for all, which must then have the same one.
        descriptions: Patterns, one of which the description of a series to collect must match; () for all.
        channels: Patterns of the description by channel, in the order of the channels; {} to make each series a case.
        partial: Rule for scans of which only some slices are outlined; None if every label covers its whole scan.
    """

    labels: Mapping[str, int] | None = None
    matches: Path | None = None
    overlap: Overlap = "refuse"
    modalities: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    channels: Mapping[str, str] = field(default_factory=dict)
    partial: PartialLabels | None = None


@dataclass(frozen=True)
class CollectionPlan:
    """Scans to read, in a reproducible order.

    Attributes:
        channels: Names of the channels.
        scans: Scans that become cases.
        labels: Function that returns ``labels`` of dataset.json, to be called after all scans were read.
        absent: Function that returns the names of structures without a voxel in any scan, to be called then, too.
        entries: Report entries for everything that was refused or left out before any scan was read.
        painted: ``regions_class_order`` of dataset.json, if the source has one.
    """

    channels: tuple[str, ...]
    scans: tuple[SourceScan, ...]
    labels: Callable[[], dict[str, Any]]
    absent: Callable[[], list[str]]
    entries: tuple[ReportEntry, ...]
    painted: tuple[int, ...] = ()
