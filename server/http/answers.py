"""From an upload to the bytes of its answer: the work of one request, in one thread."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import InputError
from semiseg.inference.sliding_window import Progress, Timing
from semiseg.outputs.answer import PROBABILITIES, chosen_kind, write_answer
from semiseg.outputs.case import read_case
from semiseg.outputs.kind import KINDS, Kind
from semiseg.outputs.report import NOTICE, Report
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.nifti import is_nifti
from semiseg.volumes.scan import Scan, open_scan
from semiseg.volumes.unpack import is_zip
from semiseg.volumes.wishes import Wishes
from server.http.limits import Refusal
from server.http.model import ServedModel
from server.http.models import Models
from server.http.uploads import Upload

MEDIA_TYPES: dict[Kind, str] = {
    "nifti": "application/gzip",
    "nifti-labelmap": "application/gzip",
    "seg": "application/dicom",
    "seg-labelmap": "application/dicom",
    "seg-fractional": "application/dicom",
    "rtstruct": "application/dicom",
    "sr": "application/dicom",
    "overlay": "application/zip",
    "json": "application/json",
    "case": "application/zip",
}
FILE_NAMES: dict[Kind, str] = {
    "nifti": "segmentation.nii.gz",
    "nifti-labelmap": "segmentation.nii.gz",
    "seg": "segmentation.dcm",
    "seg-labelmap": "segmentation.dcm",
    "seg-fractional": "segmentation.dcm",
    "rtstruct": "structures.dcm",
    "sr": "report.dcm",
    "overlay": "overlay.zip",
    "json": "segmentation.json",
    "case": "case.zip",
}

_STORED_NAME = re.compile(r"scan-(\d{5})(?:, member (\d+))?")


@dataclass(frozen=True)
class Answer:
    """The body of a successful answer and its headers; ``model`` is the name of the one that segmented, in windows."""

    model: str
    windows: int
    body: bytes
    media_type: str
    headers: dict[str, str]


def answer_upload(
    upload: Upload,
    accept: str,
    models: Models,
    folder: Path,
    timing: Timing,
    cancelled: Callable[[], bool],
    progress: Progress | None = None,
) -> Answer:
    """Read the scan, segment it, and write the answer in the form asked for.

    Args:
        upload: the files, in ``folder``, and the form's text fields.
        accept: the request's Accept header; it counts where the form does not name the answer.
        models: one of which segments.
        folder: the request's own folder, for unpacking and for the answer.
        timing: filled with the seconds of each stage.
        cancelled: asked between windows; True ends the work.
        progress: told (windows done, windows in all) after each batch.

    Raises:
        Refusal: 400, 415 or 422, with a sentence in which no path of the server occurs.
        SemisegError: the work failed for a reason that is not the caller's.
    """
    clock = time.perf_counter()
    model = require_sense(upload, models)
    asked, wishes = _kind_asked(upload, accept), _wishes(upload)
    try:
        scan = open_scan(
            upload.channels or upload.files,
            model.segmenter.manifest.rules,
            wishes,
            scratch=folder,
        )
        kind = _kind_for(asked, scan, model)
        timing.add("reading", clock)
        segmentation, remarks = model.segmenter.segment_with_remarks(
            scan.channels,
            progress=progress,
            cancelled=cancelled,
            timing=timing,
            probabilities=kind in PROBABILITIES,
        )
        clock = time.perf_counter()
        target = folder / FILE_NAMES[kind]
        report = Report.of(segmentation, model.identity, scan, remarks, windows=timing.windows, seconds=timing.seconds)
        source = _source(upload, model)
        write_answer(target, kind, segmentation, report, series=scan.series, source=source, image=scan.grid)
        body = target.read_bytes()
        timing.add("writing", clock)
    except InputError as error:
        raise Refusal(422, public_sentence(str(error), folder, len(upload.files))) from error
    return Answer(model.identity.name, timing.windows, body, MEDIA_TYPES[kind], _headers(report, kind, timing))


def answer_again(upload: Upload, asked: str, model: ServedModel, case: Path, folder: Path) -> Answer:
    """Another form of a segmentation that was made already, without the network.

    Args:
        upload: the scan it was made of, in ``folder``.
        asked: the form.
        model: the model that made it.
        case: the answer of the form ``case``.
        folder: for the answer, and for unpacking.

    Raises:
        Refusal: 400, this form is none, or not of this scan, or shows what a case does not keep, or the model is not
            the one that made it; 422, the scan lacks what the form needs.
    """
    if asked not in KINDS:
        raise _unknown_kind()
    manifest, timing = model.segmenter.manifest, Timing()
    try:
        scan = open_scan(upload.channels or upload.files, manifest.rules, _wishes(upload), scratch=folder)
        kind = _kind_for(asked, scan, model)
        if kind in PROBABILITIES:
            raise Refusal(400, f"A job does not keep what {kind} shows, probabilities; send the scan once more for it.")
        made = read_case(case, manifest.segments, exclusive=manifest.activation == "softmax", scratch=folder)
        if made.report.model.sha256 != model.identity.sha256:
            raise Refusal(400, f"{model.identity.name} has been replaced since; send the scan once more.")
        target, source = folder / FILE_NAMES[kind], _source(upload, model)
        write_answer(target, kind, made.segmentation, made.report, series=scan.series, source=source, image=scan.grid)
    except InputError as error:
        raise Refusal(422, public_sentence(str(error), folder, len(upload.files))) from error
    return Answer(
        model.identity.name,
        made.report.windows,
        target.read_bytes(),
        MEDIA_TYPES[kind],
        _headers(made.report, kind, timing),
    )


def require_sense(upload: Upload, models: Models) -> ServedModel:
    """The model that is meant, once the form makes sense and one of the files could be a scan.

    Raises:
        Refusal: 400 or 415.
    """
    model = models.chosen(upload.fields.get("model"))
    _kind_asked(upload, "")
    _wishes(upload)
    _require_scan(upload)
    return model


def public_sentence(message: str, folder: Path, files: int) -> str:
    """The sentence without the server's own names for the caller's files."""

    def spoken(match: re.Match[str]) -> str:
        number, member = int(match[1]), match[2]
        if member is not None:
            return f"file {int(member)} of the zip"
        return "the upload" if files == 1 else f"file {number} of the upload"

    sentence = _STORED_NAME.sub(spoken, message.replace(f"{folder}/", "")).replace(str(folder), "the upload")
    return sentence[:1].upper() + sentence[1:]


def _require_scan(upload: Upload) -> None:
    if not any(is_nifti(file) or is_dicom(file) or is_zip(file) for file in upload.files):
        what = "The upload is" if len(upload.files) == 1 else f"None of the {len(upload.files)} files is"
        raise Refusal(415, f"{what} neither a NIfTI file (.nii, .nii.gz) nor DICOM nor a zip of those.")


def _kind_asked(upload: Upload, accept: str) -> str | None:
    asked = upload.fields.get("answer")
    if asked and asked not in KINDS:
        raise _unknown_kind()
    return asked or _kind_accepted(accept)


def _unknown_kind() -> Refusal:
    return Refusal(400, f"The field `answer` is {', '.join(KINDS[:-1])} or {KINDS[-1]}.")


def _source(upload: Upload, model: ServedModel) -> Path:
    """The file whose grid is the answer's, if it is one file."""
    first = model.segmenter.manifest.channel_names[0]
    return (upload.channels.get(first) or upload.files)[0]


def _wishes(upload: Upload) -> Wishes:
    said = {name: upload.fields.get(name, "false") for name in ("strict", "aligned")}
    for name, word in said.items():
        if word not in ("true", "false"):
            raise Refusal(400, f"The field `{name}` is true or false.")
    series = upload.fields.get("series") or None
    return Wishes(series, strict=said["strict"] == "true", aligned=said["aligned"] == "true")


def _kind_for(asked: str | None, scan: Scan, model: ServedModel) -> Kind:
    try:
        return chosen_kind(asked, scan.series, model.segmenter.manifest)
    except InputError as error:
        raise Refusal(400, str(error)) from error


def _kind_accepted(accept: str) -> str | None:
    """The form that an Accept header names first; wildcards and foreign types name none."""
    types = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return next((kind for wanted in types for kind, media in MEDIA_TYPES.items() if media == wanted), None)


def _headers(report: Report, kind: Kind, timing: Timing) -> dict[str, str]:
    stages = ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in timing.seconds.items())
    return {
        "Content-Disposition": f'attachment; filename="{FILE_NAMES[kind]}"',
        "Server-Timing": stages,
        "X-Semiseg-Notice": NOTICE,
        "X-Semiseg-Model": json.dumps(report.model.model_dump()),
        "X-Semiseg-Millilitres": json.dumps({segment.name: segment.ml for segment in report.segments}),
        "X-Semiseg-Remarks": json.dumps([[remark.code, remark.text] for remark in report.remarks]),
        "X-Semiseg-Windows": str(timing.windows),
    }
