"""Dataset folders, their splits, and checks of their files."""

from semiseg.dataset.check import DatasetFinding, check_dataset
from semiseg.dataset.folder import Case, Dataset, load_dataset, parse_case_id, read_channels, read_reference
from semiseg.dataset.split import Split, evaluation_scans, make_split
from semiseg.dataset.split_file import SplitFile, find_split, random_split, read_split, write_split

__all__ = [
    "Case",
    "Dataset",
    "DatasetFinding",
    "Split",
    "SplitFile",
    "check_dataset",
    "evaluation_scans",
    "find_split",
    "load_dataset",
    "make_split",
    "parse_case_id",
    "random_split",
    "read_channels",
    "read_reference",
    "read_split",
    "write_split",
]
