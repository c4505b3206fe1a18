"""Makes datasets from clinical data: DICOM series with SEG, RTSTRUCT or NIfTI labels, and nnU-Net folders."""

from semiseg.collection.collect import CollectionResult, check_destination, collect
from semiseg.collection.plan import CollectOptions
from semiseg.collection.report import ReportEntry, count_entries
from semiseg.collection.structures import Overlap, PartialLabels, parse_labels

__all__ = [
    "CollectOptions",
    "CollectionResult",
    "Overlap",
    "PartialLabels",
    "ReportEntry",
    "check_destination",
    "collect",
    "count_entries",
    "parse_labels",
]
