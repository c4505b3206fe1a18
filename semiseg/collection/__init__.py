"""From what clinics have to a dataset: DICOM series with their SEG, RTSTRUCT or NIfTI labels, and nnU-Net folders."""

from semiseg.collection.collect import Collected, collect
from semiseg.collection.plan import Wishes
from semiseg.collection.report import Line, counts
from semiseg.collection.structures import Overlap, parse_labels

__all__ = ["Collected", "Line", "Overlap", "Wishes", "collect", "counts", "parse_labels"]
