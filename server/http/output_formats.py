"""The forms of an answer on the wire: what they are called, what is asked for, and several of them in one body."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from semiseg.errors import InputError
from semiseg.outputs.formats import FORMAT_TRAITS, OUTPUT_FORMATS, RESULTS_MEDIA_TYPE, OutputFormat
from semiseg.outputs.writers import resolve_format
from semiseg.volumes.scan import Scan
from server.http.limits import ApiError
from server.http.model import ServedModel

ZIP_MEDIA_TYPE = "application/zip"  # of answers in several forms: a folder for each, named as the form


def requested_formats(field: str, accept: str) -> tuple[OutputFormat, ...]:
    """The forms that a request names: in its field `answer`, or else by its Accept header; none where it does not.

    Raises:
        ApiError: 400, the field names something else.
    """
    if field:
        return parse_formats(field)
    types = _accepted(accept)
    # Wildcards and foreign types name none.
    return tuple(kind for wanted in types for kind, form in FORMAT_TRAITS.items() if form.media_type == wanted)[:1]


def wants_report(accept: str) -> bool:
    """Whether an Accept header asks for a zip of the answer and of the report, whose size no header bounds."""
    return RESULTS_MEDIA_TYPE in _accepted(accept)


def _accepted(accept: str) -> list[str]:
    return [part.split(";")[0].strip().lower() for part in accept.split(",")]


def parse_formats(field: str) -> tuple[OutputFormat, ...]:
    """The forms that a field `answer` names, separated by commas.

    Raises:
        ApiError: 400, it names something else, or nothing.
    """
    names = dict.fromkeys(name.strip() for name in field.split(","))
    found = tuple(kind for name in names for kind in OUTPUT_FORMATS if kind == name)
    if len(found) < len(names):
        raise ApiError(
            400,
            f"The field `answer` is {', '.join(OUTPUT_FORMATS[:-1])} or {OUTPUT_FORMATS[-1]}, or several with commas.",
        )
    return found


def formats_for_scan(asked: Sequence[OutputFormat], scan: Scan, model: ServedModel) -> tuple[OutputFormat, ...]:
    """The forms that are made of a scan: those asked for, or the scan's own.

    Raises:
        ApiError: 400, one of them cannot be made of this scan, or cannot hold the model's segments.
    """
    try:
        return tuple(resolve_format(kind, scan.series, model.segmenter.manifest) for kind in asked or (None,))
    except InputError as error:
        raise ApiError(400, str(error)) from error


def pack_files(files: Mapping[OutputFormat, Path], *, with_report: bool = False) -> tuple[bytes, str, str]:
    """The body, the media type and the file name of an answer in these forms; a zip if the report was asked for."""
    if len(files) == 1 and not with_report:
        ((kind, path),) = files.items()
        return path.read_bytes(), FORMAT_TRAITS[kind].media_type, FORMAT_TRAITS[kind].file_name
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for kind, path in files.items():
            archive.writestr(zipfile.ZipInfo(f"{kind}/{FORMAT_TRAITS[kind].file_name}"), path.read_bytes())
    return body.getvalue(), RESULTS_MEDIA_TYPE if with_report else ZIP_MEDIA_TYPE, "answers.zip"
