"""Results that a server returns, parsed from HTTP responses: the file, the volumes and the scan warnings."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from semiseg.errors import SemisegError
from semiseg.outputs.formats import OUTPUT_FORMATS, RESULTS_MEDIA_TYPE, present_name

_SHORTENED = "x-semiseg-shortened"


@dataclass(frozen=True)
class SegmentationResult:
    """The result of a segmentation in one output format.

    Attributes:
        body: Content of the file: .nii.gz, DICOM, or JSON text.
        media_type: Media type of the file, such as ``application/gzip``
            (:data:`semiseg.outputs.formats.OUTPUT_FORMATS`).
        millilitres: Volume of each segment in ml, by name.
        seconds: Seconds per stage on the server.
        model: Identity of the model: name, sha256, method, version.
        remarks: Warnings about the scan and corrections of it, as pairs of a code and a sentence.
    """

    body: bytes
    media_type: str
    millilitres: dict[str, float]
    seconds: dict[str, float]
    model: dict[str, Any]
    remarks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class MultiFormatResult:
    """The result of a segmentation in several output formats.

    Attributes:
        files: Files of each format, in the order of the request; only ``overlay`` has several files.
        model, millilitres, remarks: The same as in :class:`SegmentationResult`.
    """

    files: dict[str, tuple[bytes, ...]]
    model: dict[str, Any]
    millilitres: dict[str, float]
    remarks: tuple[tuple[str, str], ...]


def foreign_server_error(url: str) -> SemisegError:
    """Return the error for a response that does not come from a semiseg server."""
    return SemisegError(f"The server at {url} is not a semiseg server.")


def parse_result(url: str, response: httpx.Response) -> SegmentationResult:
    """Parse the response to a request for one output format, or for the format that the server chooses.

    Raises:
        SemisegError: The response does not come from a semiseg server.
    """
    try:
        if _media_type(response) != RESULTS_MEDIA_TYPE:
            return _by_headers(response)
        bodies = _members_by_folder(response.content)
        # The archive contains the report beside the requested format; if it contains nothing else, the report itself
        # was requested.
        kind = next((name for name in OUTPUT_FORMATS if name in bodies and name != "json"), "json")
        return replace(_by_report(response, bodies), body=bodies[kind], media_type=OUTPUT_FORMATS[kind].media_type)
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise foreign_server_error(url) from None


def parse_multi_format_result(url: str, response: httpx.Response, forms: Sequence[str]) -> MultiFormatResult:
    """Parse the response to a request for several output formats.

    Raises:
        SemisegError: The response does not come from a semiseg server, or lacks one of the formats.
    """
    try:
        if _media_type(response) == RESULTS_MEDIA_TYPE:
            bodies = _members_by_folder(response.content)
            reply = _by_report(response, bodies)
        else:  # a server of version 0.1
            reply = _by_headers(response)
            bodies = {present_name(forms[0]): reply.body} if len(forms) == 1 else _members_by_folder(reply.body)
        files = {form: _files_of(present_name(form), bodies) for form in forms}
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise foreign_server_error(url) from None
    return MultiFormatResult(files, reply.model, reply.millilitres, reply.remarks)


def _files_of(name: str, bodies: Mapping[str, bytes]) -> tuple[bytes, ...]:
    several = name in OUTPUT_FORMATS and OUTPUT_FORMATS[name].several_files
    return _members(bodies[name]) if several else (bodies[name],)


def has_truncated_headers(response: httpx.Response) -> bool:
    """Return True if the server shortened the values of response headers, which have a limited size."""
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
    """Parse the seconds per stage from a Server-Timing header."""
    pairs = (part.strip().split(";dur=") for part in header.split(",") if part.strip())
    return {stage: float(milliseconds) / 1000.0 for stage, milliseconds in pairs}


def _members_by_folder(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {present_name(name.partition("/")[0]): archive.read(name) for name in archive.namelist()}


def _members(body: bytes) -> tuple[bytes, ...]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return tuple(archive.read(name) for name in archive.namelist())
