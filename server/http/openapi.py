"""What the server says about itself in /docs.json (OpenAPI 3.1): every field, answer and error of POST /segment."""

from __future__ import annotations

from typing import Any

from semiseg.bundle.manifest import Manifest
from semiseg.outputs.kind import KINDS
from semiseg.outputs.report import NOTICE, Report
from server.http.answers import FILE_NAMES, MEDIA_TYPES
from server.http.limits import MEGABYTE, Limits
from server.http.schemas import ErrorAnswer
from server.http.uploads import CHANNEL_FIELDS, FILES_FIELD

_REF = "#/components/schemas/{model}"

ERRORS = {
    400: "The request is not a usable form: no file in `scan`, an unknown field, an unknown `answer`, a form that ends "
    "early, or a DICOM SEG asked for a NIfTI file.",
    408: "The upload stood still for too long.",
    413: "The upload is larger, or has more files, than the server accepts.",
    415: "The upload is not a multipart form, or what it holds is neither NIfTI nor DICOM nor a zip.",
    422: "The upload is a scan that cannot be segmented: damaged, several series, slices that make no volume, another "
    "number of channels than the model takes, an archive that unpacks to too much.",
    500: "The server failed on this scan.",
    503: "The model is still warming up, or the server is busy; `Retry-After` says when to try again.",
    504: "The request took longer than the server allows.",
}

HEADERS = {
    "Server-Timing": "Milliseconds per stage: upload, reading, preprocessing, windows, network, blending, "
    "deciding, restoring, comparing, writing.",
    "X-Semiseg-Notice": NOTICE,
    "X-Semiseg-Model": "Identity of the model as JSON: name, sha256, method, version, precision, engine.",
    "X-Semiseg-Millilitres": "Volume of each segment in ml, by name, as JSON.",
    "X-Semiseg-Remarks": "What was noticed about the scan or done to it (a tilt corrected, slices missing), as JSON: a "
    "list of pairs of a code and a sentence.",
    "X-Semiseg-Windows": "Windows that the network ran.",
    "Content-Disposition": "A file name for the answer.",
}


def openapi_document(manifest: Manifest, limits: Limits) -> dict[str, Any]:
    """The OpenAPI document of a server that answers with ``manifest``'s model within ``limits``."""
    schemas: dict[str, Any] = {}
    for model in (Report, ErrorAnswer):
        schema = model.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "semiseg",
            "version": manifest.provenance.semiseg,
            "description": f"{NOTICE}. Model {manifest.name} outlines {_segments(manifest)} in a scan with the "
            f"channel(s) {', '.join(manifest.channel_names)}.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/segment": {"post": _segment(manifest, limits)},
            "/livez": {"get": _probe("Alive", {"200": "The process answers."})},
            "/readyz": {
                "get": _probe("Ready", {"200": "The model is loaded and warm.", "503": "The model is warming up."})
            },
            "/metrics": {"get": _probe("Prometheus metrics", {"200": "In Prometheus' text format."})},
        },
        "components": {"schemas": schemas},
    }


def _segment(manifest: Manifest, limits: Limits) -> dict[str, Any]:
    return {
        "operationId": "segment",
        "summary": "Segment one scan",
        "description": "Send a NIfTI file (.nii, .nii.gz), a zip of a DICOM series or of one NIfTI file, or several "
        "DICOM files, each as a part named `scan`. What a file is decides its content, not its name. The answer lies "
        "on the scan's own grid. The server keeps nothing of it.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form(manifest, limits)}}},
        "responses": {
            "200": {
                "description": "The segmentation, in the form asked for.",
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()
                },
                "content": {
                    MEDIA_TYPES["nifti"]: {"schema": {"type": "string", "format": "binary"}},
                    MEDIA_TYPES["seg"]: {"schema": {"type": "string", "format": "binary"}},
                    MEDIA_TYPES["overlay"]: {"schema": {"type": "string", "format": "binary"}},
                    MEDIA_TYPES["json"]: {"schema": {"$ref": _REF.format(model=Report.__name__)}},
                },
            },
            **{str(status): _error(text) for status, text in ERRORS.items()},
        },
    }


def _form(manifest: Manifest, limits: Limits) -> dict[str, Any]:
    files = "; ".join(f"`{kind}` is {FILE_NAMES[kind]} ({MEDIA_TYPES[kind]})" for kind in KINDS)
    return {
        "type": "object",
        "oneOf": [
            {"required": [FILES_FIELD]},
            {"required": [CHANNEL_FIELDS + name for name in manifest.channel_names]},
        ],
        "additionalProperties": False,
        "properties": {
            FILES_FIELD: {
                "type": "array",
                "minItems": 1,
                "maxItems": limits.files,
                "items": {"type": "string", "format": "binary"},
                "description": f"The file or files of one scan, {limits.upload_bytes / MEGABYTE:g} MB in all at "
                f"most: one NIfTI file (4D for several channels), DICOM files or a zip of them, of which each channel "
                "gets the one series that its rule lets through.",
            },
            **{CHANNEL_FIELDS + name: _channel_field(name) for name in manifest.channel_names},
            "answer": {
                "type": "string",
                "enum": list(KINDS),
                "description": f"The form of the answer: {files}. Left out, the Accept header decides if it names one "
                "of these media types; else a NIfTI file is answered with `nifti` and DICOM with `seg`.",
            },
            "series": {
                "type": "string",
                "maxLength": 1024,
                "description": "Series Instance UID of the series to segment, where the files hold several; for "
                "several channels NAME=UID,NAME=UID.",
            },
            "aligned": {
                "type": "string",
                "enum": ["true", "false"],
                "default": "false",
                "description": "The channels lie in one space although they are on different grids and nothing in the "
                "files says so (no common frame of reference): the others are resampled onto the first one's grid.",
            },
            "strict": {
                "type": "string",
                "enum": ["true", "false"],
                "default": "false",
                "description": "Refuse a DICOM series whose slices would have to be corrected (a tilted gantry, uneven "
                "gaps, missing slices), or of which files would be left out (copies, damaged ones).",
            },
        },
    }


def _channel_field(name: str) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": f"The file or files of channel {name} alone, in the place of `{FILES_FIELD}`; then every "
        "channel comes so.",
    }


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=ErrorAnswer.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _probe(summary: str, answers: dict[str, str]) -> dict[str, Any]:
    return {"summary": summary, "responses": {status: {"description": text} for status, text in answers.items()}}


def _segments(manifest: Manifest) -> str:
    return ", ".join(segment.name for segment in manifest.segments)
