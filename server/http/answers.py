"""From an upload to the bytes of its answer: the work of one request, in one thread."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import InputError
from semiseg.inference.sliding_window import Progress, Timing
from semiseg.outputs.answer import write_answer
from semiseg.outputs.case import read_report, read_segmentation
from semiseg.outputs.kind import FORMS, Kind
from semiseg.outputs.report import NOTICE, Report
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.nifti import is_nifti
from semiseg.volumes.scan import Scan, open_scan
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.unpack import is_zip
from semiseg.volumes.wishes import Wishes
from server.http.forms import forms_asked, forms_for, packed, unknown_form
from server.http.limits import Refusal
from server.http.model import ServedModel
from server.http.models import Models
from server.http.uploads import Upload

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
    asked, wishes = forms_asked(upload.fields.get("answer", ""), accept), _wishes(upload)
    try:
        scan = open_scan(
            upload.channels or upload.files,
            model.segmenter.manifest.rules,
            wishes,
            scratch=folder,
        )
        kinds = forms_for(asked, scan, model)
        timing.add("reading", clock)
        segmentation, remarks = model.segmenter.segment_with_remarks(
            scan.channels,
            progress=progress,
            cancelled=cancelled,
            timing=timing,
            probabilities=any(FORMS[kind].probabilities for kind in kinds),
        )
        report = Report.of(segmentation, model.identity, scan, remarks, windows=timing.windows, seconds=timing.seconds)
        return _written(kinds, segmentation, report, scan, upload, model, folder, timing)
    except InputError as error:
        raise Refusal(422, public_sentence(str(error), folder, len(upload.files))) from error


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
    kinds = forms_asked(asked, "")
    if not kinds:
        raise unknown_form()
    if probable := [kind for kind in kinds if FORMS[kind].probabilities]:
        words = f"A job does not keep what {probable[0]} shows, probabilities; send the scan once more for it."
        raise Refusal(400, words)
    manifest, timing, clock = model.segmenter.manifest, Timing(), time.perf_counter()
    try:
        report = read_report(case)
        if report.model.sha256 != model.identity.sha256:
            raise Refusal(400, f"{model.identity.name} has been replaced since; send the scan once more.")
        scan = open_scan(upload.channels or upload.files, manifest.rules, _wishes(upload), scratch=folder)
        kinds = forms_for(kinds, scan, model)
        exclusive = manifest.activation == "softmax"
        segmentation = read_segmentation(case, manifest.segments, exclusive=exclusive, scratch=folder)
        timing.add("reading", clock)
        return _written(kinds, segmentation, report, scan, upload, model, folder, timing)
    except InputError as error:
        raise Refusal(422, public_sentence(str(error), folder, len(upload.files))) from error


def require_sense(upload: Upload, models: Models) -> ServedModel:
    """The model that is meant, once the form makes sense and one of the files could be a scan.

    Raises:
        Refusal: 400 or 415.
    """
    model = models.chosen(upload.fields.get("model"))
    forms_asked(upload.fields.get("answer", ""), "")
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


def _written(
    kinds: Sequence[Kind],
    segmentation: Segmentation,
    report: Report,
    scan: Scan,
    upload: Upload,
    model: ServedModel,
    folder: Path,
    timing: Timing,
) -> Answer:
    clock = time.perf_counter()
    source = _source(upload, model)
    files = {}
    for kind in kinds:
        (folder / kind).mkdir()
        files[kind] = folder / kind / FORMS[kind].file_name
        write_answer(files[kind], kind, segmentation, report, series=scan.series, source=source, image=scan.grid)
    body, media_type, name = packed(files)
    timing.add("writing", clock)
    return Answer(model.identity.name, report.windows, body, media_type, _headers(report, name, timing))


def _require_scan(upload: Upload) -> None:
    if not any(is_nifti(file) or is_dicom(file) or is_zip(file) for file in upload.files):
        what = "The upload is" if len(upload.files) == 1 else f"None of the {len(upload.files)} files is"
        raise Refusal(415, f"{what} neither a NIfTI file (.nii, .nii.gz) nor DICOM nor a zip of those.")


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


def _headers(report: Report, name: str, timing: Timing) -> dict[str, str]:
    stages = ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in timing.seconds.items())
    return {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Server-Timing": stages,
        "X-Semiseg-Notice": NOTICE,
        "X-Semiseg-Model": json.dumps(report.model.model_dump()),
        "X-Semiseg-Millilitres": json.dumps({segment.name: segment.ml for segment in report.segments}),
        "X-Semiseg-Remarks": json.dumps([[remark.code, remark.text] for remark in report.remarks]),
        "X-Semiseg-Windows": str(report.windows),
    }
