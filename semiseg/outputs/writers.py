"""Selection of the output format by name or suffix, and the writing of results, for server and command line."""

from __future__ import annotations

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np

from semiseg.bundle.manifest import Manifest
from semiseg.errors import InputError
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct
from semiseg.outputs.formats import FORMAT_TRAITS, OUTPUT_FORMATS, OVERLAP_MESSAGE, OutputFormat, SegmentationType
from semiseg.outputs.nrrd import write_nrrd, write_seg_nrrd
from semiseg.outputs.report import ModelIdentity, Report
from semiseg.outputs.viewer_bundle import write_viewer_bundle
from semiseg.system.durable_files import replace_file
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.formats.stream import is_gzip
from semiseg.volumes.nifti import is_nifti, write_nifti, write_segmentation
from semiseg.volumes.segmentation import Segmentation, painted_values
from semiseg.volumes.volume import Volume

_SEGMENTATION_TYPES: dict[OutputFormat, SegmentationType] = {
    "seg": "binary",
    "seg-labelmap": "labelmap",
    "seg-fractional": "fractional",
}


def format_from_path(path: Path, asked: str | None = None) -> OutputFormat:
    """Return the requested output format, or the one of the file's suffix; ``.dcm`` selects a SEG.

    Raises:
        InputError: The format is unknown, or does not match the suffix.
    """
    if asked is not None and asked not in OUTPUT_FORMATS:
        raise _unknown(asked)
    for output_format, form in FORMAT_TRAITS.items():
        if path.name.lower().endswith(form.suffixes) and asked in (None, output_format):
            return output_format
    if asked is not None:
        raise InputError(f"{path}: a file of the format {asked} is named {' or '.join(FORMAT_TRAITS[asked].suffixes)}.")
    raise InputError(
        f"{path}: name the result .nii.gz or .nii (NIfTI), .seg.nrrd (3D Slicer), .nrrd, .dcm (DICOM SEG), .zip "
        "(overlay) or .json."
    )


def resolve_format(asked: str | None, series: DicomSeries | None, manifest: Manifest) -> OutputFormat:
    """Return the requested output format, or the default: DICOM SEG for a DICOM series, NIfTI for a volume in one file.

    Raises:
        InputError: The format is unknown, is a DICOM format although the scan is not DICOM, cannot represent the
            model's segments, or needs highdicom, which is not installed.
    """
    if asked is None:
        asked = "nifti" if series is None else "seg"
    output_format = next((output_format for output_format in OUTPUT_FORMATS if asked == output_format), None)
    if output_format is None:
        raise _unknown(asked)
    if FORMAT_TRAITS[output_format].on_images and series is None:
        raise InputError(
            f"A DICOM {output_format.upper()} refers to the segmented images; use the format nifti, or send DICOM."
        )
    _need_highdicom(output_format)
    if manifest.activation == "sigmoid" and output_format == "nifti-labelmap":
        painted_values(manifest.segments)
    if manifest.activation == "sigmoid" and output_format == "seg-labelmap":
        raise InputError(OVERLAP_MESSAGE)
    return output_format


def _need_highdicom(output_format: OutputFormat) -> None:
    """Raise :class:`InputError` if the format needs highdicom and it is not installed (see pyproject.toml)."""
    if FORMAT_TRAITS[output_format].by_highdicom and find_spec("highdicom") is None:
        raise InputError(
            f"DICOM {output_format.upper()} objects are written by the package highdicom, which is not installed here: "
            "`pip install --no-deps highdicom`, or use the format nifti or rtstruct."
        )


def _unknown(asked: str) -> InputError:
    return InputError(f"The output format can be {', '.join(OUTPUT_FORMATS)}; {asked[:40]!r} is none of these.")


def write_result(
    path: Path,
    output_format: OutputFormat,
    segmentation: Segmentation,
    report: Report,
    *,
    series: DicomSeries | None,
    source: Path | None = None,
    image: Volume | None = None,
) -> None:
    """Write ``segmentation`` to ``path``.

    Args:
        path: Path of the file; for NIfTI the suffix selects compression.
        output_format: Output format.
        segmentation: Segmentation to write.
        report: JSON report; it also identifies the model for DICOM objects.
        series: DICOM series of the scan, which DICOM objects refer to.
        source: File of the scan. If it is a NIfTI file, a NIfTI result repeats its qform and sform, and a fourth axis
            of length one, so that shape and affine are exactly the source's.
        image: Volume of the scan, which a viewer bundle contains.

    Raises:
        InputError: A DICOM format was requested without a series, or a writer refuses the segmentation.
    """
    if output_format == "json":
        replace_file(path, report.model_dump_json(indent=2).encode())
    elif output_format == "case":
        if image is None:
            raise InputError("A viewer bundle contains the scan, so its volume is needed.")
        write_viewer_bundle(path, segmentation, report, image)
    elif output_format == "seg-nrrd":
        write_seg_nrrd(path, segmentation)
    elif output_format == "nrrd":
        write_nrrd(path, segmentation)
    elif FORMAT_TRAITS[output_format].on_images:
        if series is None:
            raise InputError(f"A DICOM {output_format.upper()} needs the DICOM series that was segmented.")
        _write_dicom(path, output_format, segmentation, series, report)
    else:
        like = source if source is not None and source.is_file() and is_nifti(source) else None
        if output_format == "nifti-labelmap":
            segmentation = replace(segmentation, array=segmentation.label_map())
        if like is not None and segmentation.exclusive and _has_fourth_axis(like):
            write_nifti(path, segmentation.array.astype(np.uint8)[..., np.newaxis], segmentation.affine, like=like)
        else:
            write_segmentation(path, segmentation, like=like)


def _write_dicom(
    path: Path, output_format: OutputFormat, segmentation: Segmentation, series: DicomSeries, report: Report
) -> None:
    algorithm, remarks = algorithm_from_identity(report.model), [remark.text for remark in report.remarks]
    if output_format == "rtstruct":
        write_dicom(path, segmentation_to_rtstruct(segmentation, series, algorithm=algorithm))
        return
    _need_highdicom(output_format)
    from semiseg.outputs.dicom_overlay import segmentation_to_overlays, write_overlays
    from semiseg.outputs.dicom_seg import segmentation_to_seg
    from semiseg.outputs.dicom_sr import segmentation_to_sr

    if output_format == "overlay":
        write_overlays(path, segmentation_to_overlays(segmentation, series, algorithm=algorithm))
    elif output_format == "sr":
        write_dicom(path, segmentation_to_sr(segmentation, series, algorithm=algorithm, remarks=remarks))
    else:
        segmentation_type = _SEGMENTATION_TYPES[output_format]
        write_dicom(
            path,
            segmentation_to_seg(
                segmentation, series, algorithm=algorithm, remarks=remarks, segmentation_type=segmentation_type
            ),
        )


def algorithm_from_identity(model: ModelIdentity) -> Algorithm:
    """Convert the identity of a model into the algorithm identification of DICOM objects."""
    return Algorithm(name=model.name, version=model.version, model_sha256=model.sha256 or "not exported")


def _has_fourth_axis(path: Path) -> bool:
    """Return True if a NIfTI file has a fourth axis: shape (X, Y, Z, 1)."""
    with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    header_class = nib.Nifti2Header if start[4:8] == b"n+2\0" else nib.Nifti1Header
    return len(header_class(start[: header_class.sizeof_hdr], check=False).get_data_shape()) == 4
