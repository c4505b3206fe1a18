"""Selection of an output format by name or by a file's suffix, the same for server and command line."""

from __future__ import annotations

from pathlib import Path

from semiseg.bundle.manifest import Manifest
from semiseg.errors import InputError
from semiseg.outputs.formats import OUTPUT_FORMATS, OutputFormat, find_format
from semiseg.volumes.dicom_series import DicomSeries


def format_from_path(path: Path, asked: str | None = None) -> OutputFormat:
    """Return the requested output format, or the one of the file's suffix; ``.dcm`` selects a SEG.

    Raises:
        InputError: The format is unknown, or does not match the suffix.
    """
    name = path.name.lower()
    if asked is not None:
        requested = require_format(asked)
        if not name.endswith(requested.suffixes):
            raise InputError(
                f"{path}: a file of the format {requested.name} is named {' or '.join(requested.suffixes)}."
            )
        return requested
    for output_format in OUTPUT_FORMATS.values():
        if name.endswith(output_format.suffixes):
            return output_format
    raise InputError(
        f"{path}: name the result .nii.gz or .nii (NIfTI), .seg.nrrd (3D Slicer), .nrrd, .dcm (DICOM SEG), .zip "
        "(overlay) or .json."
    )


def resolve_format(asked: OutputFormat | str | None, series: DicomSeries | None, manifest: Manifest) -> OutputFormat:
    """Return the requested output format, or the default: DICOM SEG for a DICOM series, NIfTI for a volume in one file.

    Raises:
        InputError: The format is unknown, is a DICOM format although the scan is not DICOM, cannot represent the
            model's segments, or needs highdicom, which is not installed.
    """
    output_format = require_format(asked if asked is not None else "nifti" if series is None else "seg")
    if output_format.needs_dicom and series is None:
        raise InputError(
            f"A DICOM {output_format.name.upper()} refers to the segmented images; use the format nifti, or send DICOM."
        )
    output_format.check_installed()
    output_format.check_model(manifest)
    return output_format


def require_format(asked: OutputFormat | str) -> OutputFormat:
    """Return the output format of a name; a format is returned as it is.

    Raises:
        InputError: There is no such format; the message lists all.
    """
    if isinstance(asked, OutputFormat):
        return asked
    found = find_format(asked)
    if found is None:
        raise InputError(f"The output format can be {', '.join(OUTPUT_FORMATS)}; {asked[:40]!r} is none of these.")
    return found
