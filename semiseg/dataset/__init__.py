"""A folder of scans, which of them may teach, and what is wrong with them."""

from semiseg.dataset.check import Finding, check_dataset
from semiseg.dataset.folder import Case, Dataset, case_id_of, load_dataset, read_channels, read_reference
from semiseg.dataset.split import Split, make_split, scans_to_judge
from semiseg.dataset.split_file import SplitFile, find_split, random_split, read_split, write_split

__all__ = [
    "Case",
    "Dataset",
    "Finding",
    "Split",
    "SplitFile",
    "case_id_of",
    "check_dataset",
    "find_split",
    "load_dataset",
    "make_split",
    "random_split",
    "read_channels",
    "read_reference",
    "read_split",
    "scans_to_judge",
    "write_split",
]
