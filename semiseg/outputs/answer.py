"""The forms of an answer, chosen by name or by a file's suffix, and written the same way by server and CLI."""

from __future__ import annotations

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np

from semiseg.bundle.manifest import Manifest
from semiseg.errors import InputError
from semiseg.outputs.case import write_case
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct
from semiseg.outputs.kind import FORMS, KINDS, NO_LABEL_MAP, Kind, SegForm
from semiseg.outputs.nrrd import write_nrrd, write_seg_nrrd
from semiseg.outputs.report import ModelIdentity, Report
from semiseg.system.durable_files import replace_file
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.formats.stream import is_gzip
from semiseg.volumes.nifti import is_nifti, write_nifti, write_segmentation
from semiseg.volumes.segmentation import Segmentation, painted_values
from semiseg.volumes.volume import Volume

_SEG_FORMS: dict[Kind, SegForm] = {"seg": "binary", "seg-labelmap": "labelmap", "seg-fractional": "fractional"}


def kind_of_file(path: Path, asked: str | None = None) -> Kind:
    """The form that was asked for, or that a file's suffix says: ``.dcm`` is a SEG.

    Raises:
        InputError: an unknown form, or a suffix that does not suit it.
    """
    if asked is not None and asked not in KINDS:
        raise _unknown(asked)
    for kind, form in FORMS.items():
        if path.name.lower().endswith(form.suffixes) and asked in (None, kind):
            return kind
    if asked is not None:
        raise InputError(f"{path}: an answer of the form {asked} is named {' or '.join(FORMS[asked].suffixes)}.")
    raise InputError(
        f"{path}: name the answer .nii.gz or .nii (NIfTI), .seg.nrrd (3D Slicer), .nrrd, .dcm (DICOM SEG), .zip "
        "(overlay) or .json."
    )


def chosen_kind(asked: str | None, series: DicomSeries | None, manifest: Manifest) -> Kind:
    """The form asked for, or the scan's own: DICOM SEG for a DICOM series, NIfTI for a NIfTI file.

    Raises:
        InputError: an unknown form, one of DICOM's for a scan that is not DICOM, one that cannot
            hold the model's segments, or one that needs highdicom where that is not installed.
    """
    if asked is None:
        asked = "nifti" if series is None else "seg"
    kind = next((kind for kind in KINDS if asked == kind), None)
    if kind is None:
        raise _unknown(asked)
    if FORMS[kind].on_images and series is None:
        raise InputError(f"A DICOM {kind.upper()} refers to the images it was drawn on; ask for nifti, or send DICOM.")
    _need_highdicom(kind)
    if manifest.activation == "sigmoid" and kind == "nifti-labelmap":
        painted_values(manifest.segments)
    if manifest.activation == "sigmoid" and kind == "seg-labelmap":
        raise InputError(NO_LABEL_MAP)
    return kind


def _need_highdicom(kind: Kind) -> None:
    """Raise :class:`InputError` where highdicom has to write ``kind`` and is not installed (see pyproject.toml)."""
    if FORMS[kind].by_highdicom and find_spec("highdicom") is None:
        raise InputError(
            f"DICOM {kind.upper()} objects are written by the package highdicom, which is not installed here: "
            "`pip install --no-deps highdicom`, or ask for nifti or rtstruct."
        )


def _unknown(asked: str) -> InputError:
    return InputError(f"The answer can be {', '.join(KINDS)}; {asked[:40]!r} is none of these.")


def write_answer(
    path: Path,
    kind: Kind,
    segmentation: Segmentation,
    report: Report,
    *,
    series: DicomSeries | None,
    source: Path | None = None,
    image: Volume | None = None,
) -> None:
    """Write ``segmentation`` to ``path``.

    Args:
        path: where; for NIfTI the suffix decides about compression.
        kind: the form.
        segmentation: what to write.
        report: what JSON says, and who made the DICOM objects.
        series: the scan's DICOM series, which those refer to.
        source: the file the scan came from. Where that is a NIfTI file, the answer repeats how it says its place in
            space, and a fourth axis of length one, so that shape and affine are the source's exactly.
        image: the scan, which a case shows.

    Raises:
        InputError: one of DICOM's forms without a series, or whatever the writers refuse.
    """
    if kind == "json":
        replace_file(path, report.model_dump_json(indent=2).encode())
    elif kind == "case":
        if image is None:
            raise InputError("A case shows the scan; it needs its volume.")
        write_case(path, segmentation, report, image)
    elif kind == "seg-nrrd":
        write_seg_nrrd(path, segmentation)
    elif kind == "nrrd":
        write_nrrd(path, segmentation)
    elif FORMS[kind].on_images:
        if series is None:
            raise InputError(f"A DICOM {kind.upper()} needs the DICOM series it was drawn on.")
        _write_dicom(path, kind, segmentation, series, report)
    else:
        like = source if source is not None and source.is_file() and is_nifti(source) else None
        if kind == "nifti-labelmap":
            segmentation = replace(segmentation, array=segmentation.label_map())
        if like is not None and segmentation.exclusive and _has_fourth_axis(like):
            write_nifti(path, segmentation.array.astype(np.uint8)[..., np.newaxis], segmentation.affine, like=like)
        else:
            write_segmentation(path, segmentation, like=like)


def _write_dicom(path: Path, kind: Kind, segmentation: Segmentation, series: DicomSeries, report: Report) -> None:
    algorithm, remarks = algorithm_of(report.model), [remark.text for remark in report.remarks]
    if kind == "rtstruct":
        write_dicom(path, segmentation_to_rtstruct(segmentation, series, algorithm=algorithm))
        return
    _need_highdicom(kind)
    from semiseg.outputs.dicom_overlay import segmentation_to_overlays, write_overlays
    from semiseg.outputs.dicom_seg import segmentation_to_seg
    from semiseg.outputs.dicom_sr import segmentation_to_sr

    if kind == "overlay":
        write_overlays(path, segmentation_to_overlays(segmentation, series, algorithm=algorithm))
    elif kind == "sr":
        write_dicom(path, segmentation_to_sr(segmentation, series, algorithm=algorithm, remarks=remarks))
    else:
        form = _SEG_FORMS[kind]
        write_dicom(path, segmentation_to_seg(segmentation, series, algorithm=algorithm, remarks=remarks, form=form))


def algorithm_of(model: ModelIdentity) -> Algorithm:
    """Who made an object, in DICOM's words."""
    return Algorithm(name=model.name, version=model.version, model_sha256=model.sha256 or "not exported")


def _has_fourth_axis(path: Path) -> bool:
    """Whether a NIfTI file declares its one volume as the first of a series of one: shape (X, Y, Z, 1)."""
    with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if start[4:8] == b"n+2\0" else nib.Nifti1Header
    return len(kind(start[: kind.sizeof_hdr], check=False).get_data_shape()) == 4
