"""Segmentation of a scan and encoding of the result, for one request or job, in one thread."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import InputError
from semiseg.inference.timing import Progress, Timing
from semiseg.outputs.formats import OUTPUT_FORMATS, OutputFormat
from semiseg.outputs.report import Report
from semiseg.outputs.viewer_bundle import read_report, read_segmentation
from semiseg.predicting.prediction import Prediction
from server.http.limits import ApiError
from server.http.output_formats import formats_for_scan, pack_files
from server.http.result_headers import make_result_headers
from server.http.segmentation_request import SegmentationRequest

_STORED_NAME = re.compile(r"scan-(\d{5})(?:, member (\d+))?")


@dataclass(frozen=True)
class EncodedResult:
    """A result as the body and headers of a response.

    Attributes:
        report: Report with the segments, the scan warnings and the identity of the model.
        body: Content of the file, or a zip of several files.
        media_type: Media type of the body.
        headers: Further headers, limited in size.
    """

    report: Report
    body: bytes
    media_type: str
    headers: dict[str, str]


def segment_scan(
    scan_request: SegmentationRequest,
    folder: Path,
    timing: Timing,
    cancelled: Callable[[], bool],
    progress: Progress | None = None,
) -> EncodedResult:
    """Read the scan, segment it, and encode the result in the requested output formats.

    Args:
        scan_request: Request whose files are in ``folder``.
        folder: Folder of the request, for unpacking and for the result.
        timing: Timing to which the seconds of each stage are added.
        cancelled: Function that is called between windows; if it returns True, the work ends.
        progress: Function that is called with (windows done, total windows) after each batch.

    Raises:
        ApiError: 400 or 422, with a message that contains no path of the server.
        SemisegError: The work failed for a reason other than the request.
    """
    model = scan_request.model
    with _in_the_callers_words(scan_request, folder):
        clock = time.perf_counter()
        scan = scan_request.open_scan(folder)
        kinds = formats_for_scan(scan_request.options.formats, scan, model)
        timing.add("reading", clock)
        prediction = model.predictor.predict_scan(
            scan,
            probabilities=any(kind.needs_probabilities for kind in kinds),
            full=scan_request.options.full,
            progress=progress,
            cancelled=cancelled,
            timing=timing,
        )
        return _written(kinds, prediction, folder, with_report=scan_request.with_report)


def convert_result(scan_request: SegmentationRequest, case: Path, folder: Path) -> EncodedResult:
    """Convert a finished segmentation to other output formats, without running the network.

    Args:
        scan_request: Request with the segmented scan, in ``folder``, and the output formats.
        case: Result in the output format ``viewer-bundle``.
        folder: Folder for unpacking and for the result.

    Raises:
        ApiError: 400, a format cannot be made from this scan or needs probabilities, which a viewer bundle does not
            contain, or the model was replaced since; 422, the scan lacks data that the format needs.
    """
    if probable := [kind for kind in scan_request.options.formats if kind.needs_probabilities]:
        words = f"A job does not keep the probabilities that {probable[0].name} needs; send the scan again for it."
        raise ApiError(400, words)
    model, manifest, timing = scan_request.model, scan_request.model.segmenter.manifest, Timing()
    with _in_the_callers_words(scan_request, folder):
        clock = time.perf_counter()
        report = read_report(case)
        if report.model.sha256 != model.identity.sha256:
            raise ApiError(400, f"The model {model.identity.name} was replaced since; send the scan again.")
        scan = scan_request.open_scan(folder)
        kinds = formats_for_scan(scan_request.options.formats, scan, model)
        exclusive = manifest.activation == "softmax"
        segmentation = read_segmentation(case, manifest.segments, exclusive=exclusive, scratch=folder)
        timing.add("reading", clock)
        return _written(
            kinds, Prediction(scan, segmentation, report, timing), folder, with_report=scan_request.with_report
        )


def _written(
    kinds: Sequence[OutputFormat], prediction: Prediction, folder: Path, *, with_report: bool
) -> EncodedResult:
    report = prediction.report
    files: dict[OutputFormat, Path] = {}
    for kind in dict.fromkeys((*kinds, OUTPUT_FORMATS["json"]) if with_report else kinds):
        (folder / kind.name).mkdir()
        files[kind] = folder / kind.name / kind.file_name
        prediction.write(files[kind], kind)
    clock = time.perf_counter()
    body, media_type, name = pack_files(files, with_report=with_report)
    prediction.timing.add("writing", clock)
    return EncodedResult(report, body, media_type, make_result_headers(report, name, prediction.timing))


@contextlib.contextmanager
def _in_the_callers_words(scan_request: SegmentationRequest, folder: Path) -> Iterator[None]:
    """Convert input errors to API errors, without the server's names of the uploaded files."""
    try:
        yield
    except InputError as error:
        raise ApiError(422, _public_sentence(str(error), folder, len(scan_request.upload.files))) from error


def _public_sentence(message: str, folder: Path, files: int) -> str:
    def spoken(match: re.Match[str]) -> str:
        number, member = int(match[1]), match[2]
        if member is not None:
            return f"file {int(member)} of the zip"
        return "the upload" if files == 1 else f"file {number} of the upload"

    sentence = _STORED_NAME.sub(spoken, message.replace(f"{folder}{os.sep}", "")).replace(str(folder), "the upload")
    return sentence[:1].upper() + sentence[1:]
