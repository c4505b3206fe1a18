"""What a server sent back, read out of an HTTP response: the body, and what is said of the scan."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from semiseg.errors import SemisegError
from semiseg.outputs.formats import FORMAT_TRAITS, OUTPUT_FORMATS, RESULTS_MEDIA_TYPE, OutputFormat

_SHORTENED = "x-semiseg-shortened"


@dataclass(frozen=True)
class SegmentationResult:
    """What the server sent back.

    Attributes:
        body: the file: .nii.gz, DICOM, or JSON text.
        media_type: media type of it, such as ``application/gzip`` (:data:`semiseg.outputs.formats.FORMAT_TRAITS`).
        millilitres: volume of each segment by name.
        seconds: time per stage on the server.
        model: identity of the model: name, sha256, method, version.
        remarks: observations and corrections of the scan, as pairs of a code and a sentence.
    """

    body: bytes
    media_type: str
    millilitres: dict[str, float]
    seconds: dict[str, float]
    model: dict[str, Any]
    remarks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class MultiFormatResult:
    """An answer in several forms.

    Attributes:
        files: the files of each form, in the order in which they were asked for; several only of ``overlay``.
        model, millilitres, remarks: the same as in :class:`SegmentationResult`.
    """

    files: dict[str, tuple[bytes, ...]]
    model: dict[str, Any]
    millilitres: dict[str, float]
    remarks: tuple[tuple[str, str], ...]


def foreign_server_error(url: str) -> SemisegError:
    """The error of an answer that no semiseg server gives."""
    return SemisegError(f"What answers at {url} is not a semiseg server.")


def parse_result(url: str, response: httpx.Response) -> SegmentationResult:
    """The answer to a request for one form, or for the form that the server chooses.

    Raises:
        SemisegError: the response is no semiseg server's.
    """
    try:
        if _media_type(response) != RESULTS_MEDIA_TYPE:
            return _by_headers(response)
        bodies = _members_by_folder(response.content)
        # Beside the form there is the report; where that alone was asked for, it is the answer.
        kind: OutputFormat = next((name for name in OUTPUT_FORMATS if name in bodies and name != "json"), "json")
        return replace(_by_report(response, bodies), body=bodies[kind], media_type=FORMAT_TRAITS[kind].media_type)
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise foreign_server_error(url) from None


def parse_multi_format_result(url: str, response: httpx.Response, forms: Sequence[OutputFormat]) -> MultiFormatResult:
    """The answer to a request for ``forms``.

    Raises:
        SemisegError: the response is no semiseg server's, or a form is not in it.
    """
    try:
        if _media_type(response) == RESULTS_MEDIA_TYPE:
            bodies = _members_by_folder(response.content)
            reply = _by_report(response, bodies)
        else:  # a server of version 0.1
            reply = _by_headers(response)
            bodies = {forms[0]: reply.body} if len(forms) == 1 else _members_by_folder(reply.body)
        files = {form: _members(bodies[form]) if form == "overlay" else (bodies[form],) for form in forms}
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise foreign_server_error(url) from None
    return MultiFormatResult(
        {str(form): found for form, found in files.items()}, reply.model, reply.millilitres, reply.remarks
    )


def has_truncated_headers(response: httpx.Response) -> bool:
    """Whether the headers of a response say less than the server knows."""
    named: str = response.headers.get(_SHORTENED, "[]")
    return named != "[]"


def _by_headers(response: httpx.Response) -> SegmentationResult:
    headers = response.headers
    return SegmentationResult(
        body=response.content,
        media_type=_media_type(response),
        millilitres=json.loads(headers["x-semiseg-millilitres"]),
        seconds=_stages(headers["server-timing"]),
        model=json.loads(headers["x-semiseg-model"]),
        remarks=tuple((str(code), str(text)) for code, text in json.loads(headers["x-semiseg-remarks"])),
    )


def _by_report(response: httpx.Response, bodies: dict[str, bytes]) -> SegmentationResult:
    report = json.loads(bodies["json"])
    return SegmentationResult(
        body=b"",
        media_type="",
        millilitres={segment["name"]: segment["ml"] for segment in report["segments"]},
        seconds=_stages(response.headers.get("server-timing", "")) or report["seconds"],
        model=report["model"],
        remarks=tuple((remark["code"], remark["text"]) for remark in report["remarks"]),
    )


def _media_type(response: httpx.Response) -> str:
    return response.headers["content-type"].split(";")[0].strip().lower()


def _stages(header: str) -> dict[str, float]:
    """Seconds per stage of a Server-Timing header."""
    pairs = (part.strip().split(";dur=") for part in header.split(",") if part.strip())
    return {stage: float(milliseconds) / 1000.0 for stage, milliseconds in pairs}


def _members_by_folder(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name.partition("/")[0]: archive.read(name) for name in archive.namelist()}


def _members(body: bytes) -> tuple[bytes, ...]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return tuple(archive.read(name) for name in archive.namelist())
