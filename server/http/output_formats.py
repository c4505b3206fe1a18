"""Output formats in Accept headers and responses: their selection, and packing of several into one body."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from semiseg.errors import InputError
from semiseg.outputs.format_selection import resolve_format
from semiseg.outputs.formats import OUTPUT_FORMATS, RESULTS_MEDIA_TYPE, OutputFormat
from semiseg.volumes.scan import Scan
from server.http.limits import ApiError
from server.http.model import ServedModel

ZIP_MEDIA_TYPE = "application/zip"  # media type of a result in several formats, with a folder named after each format


def formats_from_accept(accept: str) -> tuple[str, ...]:
    """The name of the output format that an Accept header selects; empty if it selects none."""
    # Wildcards and other media types select no format.
    return tuple(
        form.name for wanted in _accepted(accept) for form in OUTPUT_FORMATS.values() if form.media_type == wanted
    )[:1]


def wants_report(accept: str) -> bool:
    """Return True if an Accept header asks for a zip of the result and the report, which is complete at any size."""
    return RESULTS_MEDIA_TYPE in _accepted(accept)


def _accepted(accept: str) -> list[str]:
    return [part.split(";")[0].strip().lower() for part in accept.split(",")]


def formats_for_scan(asked: Sequence[OutputFormat], scan: Scan, model: ServedModel) -> tuple[OutputFormat, ...]:
    """The output formats for a scan: the requested ones, or the default for its input format.

    Raises:
        ApiError: 400, a format cannot be made from this scan, or cannot hold the model's segments.
    """
    try:
        return tuple(resolve_format(one, scan.series, model.segmenter.manifest) for one in asked or (None,))
    except InputError as error:
        raise ApiError(400, str(error)) from error


def pack_files(files: Mapping[OutputFormat, Path], *, with_report: bool = False) -> tuple[bytes, str, str]:
    """Return the body, the media type and the file name of a result; several files, or a report, make a zip."""
    if len(files) == 1 and not with_report:
        ((output_format, path),) = files.items()
        return path.read_bytes(), output_format.media_type, output_format.file_name
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for output_format, path in files.items():
            archive.writestr(zipfile.ZipInfo(f"{output_format.name}/{output_format.file_name}"), path.read_bytes())
    return body.getvalue(), RESULTS_MEDIA_TYPE if with_report else ZIP_MEDIA_TYPE, "answers.zip"
