"""From an order to the bytes of its answer: the work of one request or job, in one thread."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import InputError
from semiseg.inference.sliding_window import Progress, Timing
from semiseg.outputs.case import read_report, read_segmentation
from semiseg.outputs.kind import FORMS, Kind
from semiseg.outputs.report import Report
from semiseg.predicting.prediction import Prediction
from server.http.answer_headers import headers_of
from server.http.forms import forms_for, packed
from server.http.limits import Refusal
from server.http.order import Order

_STORED_NAME = re.compile(r"scan-(\d{5})(?:, member (\d+))?")


@dataclass(frozen=True)
class Answer:
    """A successful answer.

    Attributes:
        report: The report: segments, remarks, identity of the model.
        body: The file, or a zip of several.
        media_type: Type of the body.
        headers: Further headers, bounded in size.
    """

    report: Report
    body: bytes
    media_type: str
    headers: dict[str, str]


def answer_order(
    order: Order, folder: Path, timing: Timing, cancelled: Callable[[], bool], progress: Progress | None = None
) -> Answer:
    """Read the scan, segment it, and write the answer in the forms asked for.

    Args:
        order: what is asked for; its files are in ``folder``.
        folder: the request's own folder, for unpacking and for the answer.
        timing: filled with the seconds of each stage.
        cancelled: asked between windows; True ends the work.
        progress: told (windows done, windows in all) after each batch.

    Raises:
        Refusal: 400 or 422, with a sentence in which no path of the server occurs.
        SemisegError: the work failed for a reason that is not the caller's.
    """
    model = order.model
    with _in_the_callers_words(order, folder):
        clock = time.perf_counter()
        scan = order.open_scan(folder)
        kinds = forms_for(order.forms, scan, model)
        timing.add("reading", clock)
        prediction = model.predictor.predict_scan(
            scan,
            probabilities=any(FORMS[kind].probabilities for kind in kinds),
            progress=progress,
            cancelled=cancelled,
            timing=timing,
        )
        return _written(kinds, prediction, folder, with_report=order.with_report)


def answer_again(order: Order, case: Path, folder: Path) -> Answer:
    """Other forms of a segmentation that was made already, without the network.

    Args:
        order: the scan that it was made of, in ``folder``, and the forms.
        case: the answer of the form ``case``.
        folder: for the answer, and for unpacking.

    Raises:
        Refusal: 400, a form is not of this scan, or shows what a case does not keep, or the model is not the one that
            made it; 422, the scan lacks what the form needs.
    """
    if probable := [kind for kind in order.forms if FORMS[kind].probabilities]:
        words = f"A job does not keep what {probable[0]} shows, probabilities; send the scan once more for it."
        raise Refusal(400, words)
    model, manifest, timing = order.model, order.model.segmenter.manifest, Timing()
    with _in_the_callers_words(order, folder):
        clock = time.perf_counter()
        report = read_report(case)
        if report.model.sha256 != model.identity.sha256:
            raise Refusal(400, f"{model.identity.name} has been replaced since; send the scan once more.")
        scan = order.open_scan(folder)
        kinds = forms_for(order.forms, scan, model)
        exclusive = manifest.activation == "softmax"
        segmentation = read_segmentation(case, manifest.segments, exclusive=exclusive, scratch=folder)
        timing.add("reading", clock)
        return _written(kinds, Prediction(scan, segmentation, report, timing), folder, with_report=order.with_report)


def _written(kinds: Sequence[Kind], prediction: Prediction, folder: Path, *, with_report: bool) -> Answer:
    report = prediction.report
    files: dict[Kind, Path] = {}
    for kind in dict.fromkeys((*kinds, "json") if with_report else kinds):
        (folder / kind).mkdir()
        files[kind] = folder / kind / FORMS[kind].file_name
        prediction.write(files[kind], kind)
    clock = time.perf_counter()
    body, media_type, name = packed(files, with_report=with_report)
    prediction.timing.add("writing", clock)
    return Answer(report, body, media_type, headers_of(report, name, prediction.timing))


@contextlib.contextmanager
def _in_the_callers_words(order: Order, folder: Path) -> Iterator[None]:
    """What is wrong with a scan is told without the server's own names for the caller's files."""
    try:
        yield
    except InputError as error:
        raise Refusal(422, _public_sentence(str(error), folder, len(order.upload.files))) from error


def _public_sentence(message: str, folder: Path, files: int) -> str:
    def spoken(match: re.Match[str]) -> str:
        number, member = int(match[1]), match[2]
        if member is not None:
            return f"file {int(member)} of the zip"
        return "the upload" if files == 1 else f"file {number} of the upload"

    sentence = _STORED_NAME.sub(spoken, message.replace(f"{folder}{os.sep}", "")).replace(str(folder), "the upload")
    return sentence[:1].upper() + sentence[1:]
