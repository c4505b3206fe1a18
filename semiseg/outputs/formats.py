"""Output formats by name, the same for server, client and command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

OutputFormat = Literal[
    "nifti",
    "nifti-labelmap",
    "seg",
    "seg-labelmap",
    "seg-fractional",
    "rtstruct",
    "sr",
    "overlay",
    "json",
    "case",
    "seg-nrrd",
    "nrrd",
]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
RESULTS_MEDIA_TYPE = "application/vnd.semiseg.answers+zip"
"""Media type of results with their report: a zip with a folder for each output format, including `json`."""
SegmentationType = Literal["binary", "fractional", "labelmap"]
OVERLAP_MESSAGE = "Overlapping regions cannot be a label map in DICOM; use the format seg, which has a mask for each."


@dataclass(frozen=True)
class FormatTraits:
    """Properties of an output format.

    Attributes:
        file_name: Default name of the file.
        media_type: Media type of the file.
        suffixes: Suffixes of file names; the first is the usual one.
        on_images: True if the format refers to the segmented DICOM images, and therefore needs a DICOM series.
        probabilities: True if the format contains the network's probabilities of the segments.
        by_highdicom: True if highdicom writes the format, which is not always installed (see pyproject.toml).
    """

    file_name: str
    media_type: str
    suffixes: tuple[str, ...]
    on_images: bool = False
    probabilities: bool = False
    by_highdicom: bool = False


_NIFTI = FormatTraits("segmentation.nii.gz", "application/gzip", (".nii.gz", ".nii"))
_SEG = FormatTraits("segmentation.dcm", "application/dicom", (".dcm",), on_images=True, by_highdicom=True)
FORMAT_TRAITS: dict[OutputFormat, FormatTraits] = {
    "nifti": _NIFTI,
    "nifti-labelmap": _NIFTI,
    "seg": _SEG,
    "seg-labelmap": _SEG,
    "seg-fractional": replace(_SEG, probabilities=True),
    "rtstruct": FormatTraits("structures.dcm", "application/dicom", (".dcm",), on_images=True),
    "sr": FormatTraits("report.dcm", "application/dicom", (".dcm",), on_images=True, by_highdicom=True),
    "overlay": FormatTraits("overlay.zip", "application/zip", (".zip",), on_images=True, by_highdicom=True),
    "json": FormatTraits("segmentation.json", "application/json", (".json",)),
    "case": FormatTraits("case.zip", "application/zip", (".zip",)),
    # This entry precedes nrrd, because `.seg.nrrd` also ends with nrrd's suffix.
    "seg-nrrd": FormatTraits("segmentation.seg.nrrd", "application/x-nrrd", (".seg.nrrd",)),
    "nrrd": FormatTraits("segmentation.nrrd", "application/x-nrrd", (".nrrd",)),
}
