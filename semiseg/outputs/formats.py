"""The forms of an answer, by name; server, client and command line ask for the same ones."""

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
"""Media type of an answer that is asked for with its report: a zip with a folder for each form, among them `json`."""
SegmentationType = Literal["binary", "fractional", "labelmap"]
OVERLAP_MESSAGE = "Regions that may overlap are no label map in DICOM; ask for seg, which has a mask for each."


@dataclass(frozen=True)
class FormatTraits:
    """What has to be known of a form beside how it is written.

    Attributes:
        file_name: of an answer that nobody named.
        media_type: of its bytes.
        suffixes: what the name of a file in this form ends with; the first is the usual one.
        on_images: whether it refers to the DICOM images it was drawn on, so that there have to be some.
        probabilities: whether it shows how probable the network found each segment.
        by_highdicom: whether highdicom writes it, which is not installed everywhere (see pyproject.toml).
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
    # Before nrrd, whose suffix its own ends with.
    "seg-nrrd": FormatTraits("segmentation.seg.nrrd", "application/x-nrrd", (".seg.nrrd",)),
    "nrrd": FormatTraits("segmentation.nrrd", "application/x-nrrd", (".nrrd",)),
}
