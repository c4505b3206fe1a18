"""The forms of an answer, by name; server, client and command line ask for the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Kind = Literal[
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
KINDS: tuple[Kind, ...] = get_args(Kind)
ANSWERS = "application/vnd.semiseg.answers+zip"
"""Media type of an answer that is asked for with its report: a zip with a folder for each form, among them `json`."""
SegForm = Literal["binary", "fractional", "labelmap"]
NO_LABEL_MAP = "Regions that may overlap are no label map in DICOM; ask for seg, which has a mask for each."


@dataclass(frozen=True)
class Traits:
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


_NIFTI = Traits("segmentation.nii.gz", "application/gzip", (".nii.gz", ".nii"))
_SEG = Traits("segmentation.dcm", "application/dicom", (".dcm",), on_images=True, by_highdicom=True)
FORMS: dict[Kind, Traits] = {
    "nifti": _NIFTI,
    "nifti-labelmap": _NIFTI,
    "seg": _SEG,
    "seg-labelmap": _SEG,
    "seg-fractional": replace(_SEG, probabilities=True),
    "rtstruct": Traits("structures.dcm", "application/dicom", (".dcm",), on_images=True),
    "sr": Traits("report.dcm", "application/dicom", (".dcm",), on_images=True, by_highdicom=True),
    "overlay": Traits("overlay.zip", "application/zip", (".zip",), on_images=True, by_highdicom=True),
    "json": Traits("segmentation.json", "application/json", (".json",)),
    "case": Traits("case.zip", "application/zip", (".zip",)),
    # Before nrrd, whose suffix its own ends with.
    "seg-nrrd": Traits("segmentation.seg.nrrd", "application/x-nrrd", (".seg.nrrd",)),
    "nrrd": Traits("segmentation.nrrd", "application/x-nrrd", (".nrrd",)),
}
