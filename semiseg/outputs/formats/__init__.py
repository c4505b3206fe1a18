"""Output formats by name: one list for command line, server, client, page, gateway and documents."""

from __future__ import annotations

from semiseg.outputs.formats.base import FormatInput, OutputFormat
from semiseg.outputs.formats.dicom import (
    OverlayFormat,
    RtStructFormat,
    SegFormat,
    SegFractionalFormat,
    SegLabelMapFormat,
    SrFormat,
)
from semiseg.outputs.formats.reports import JsonFormat, ViewerBundleFormat
from semiseg.outputs.formats.volumes import NiftiFormat, NiftiLabelMapFormat, NrrdFormat, SegNrrdFormat
from semiseg.renamed_keys import warn_of_former_name

RESULTS_MEDIA_TYPE = "application/vnd.semiseg.answers+zip"
"""Media type of results with their report: a zip with a folder for each output format, including `json`."""

OUTPUT_FORMATS: dict[str, OutputFormat] = {
    output_format.name: output_format
    for output_format in (
        NiftiFormat(),
        NiftiLabelMapFormat(),
        SegFormat(),
        SegLabelMapFormat(),
        SegFractionalFormat(),
        RtStructFormat(),
        SrFormat(),
        OverlayFormat(),
        JsonFormat(),
        ViewerBundleFormat(),
        # Before nrrd, because the suffix .seg.nrrd ends with .nrrd.
        SegNrrdFormat(),
        NrrdFormat(),
    )
}
"""All output formats, by name. If several have a file's suffix, the first one is the default."""

DICOM_FORMATS = tuple(name for name, output_format in OUTPUT_FORMATS.items() if output_format.needs_dicom)
FORMER_NAMES = {"case": "viewer-bundle"}
"""Present names of formats, by their former names."""


def present_name(name: str) -> str:
    """Return the present name of an output format, for names in files that earlier versions wrote."""
    return FORMER_NAMES.get(name, name)


def find_format(name: str) -> OutputFormat | None:
    """Find an output format by its name, or by its former name with a warning; None if there is none."""
    if name in FORMER_NAMES:
        warn_of_former_name(f"The format {name} is called {FORMER_NAMES[name]} now.")
    return OUTPUT_FORMATS.get(present_name(name))


__all__ = [
    "DICOM_FORMATS",
    "OUTPUT_FORMATS",
    "RESULTS_MEDIA_TYPE",
    "FormatInput",
    "OutputFormat",
    "find_format",
    "present_name",
]
