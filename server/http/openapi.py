"""What the server says about itself in /docs.json (OpenAPI 3.1): every address, field, answer and error."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from semiseg.outputs.formats import FORMAT_TRAITS, OUTPUT_FORMATS, RESULTS_MEDIA_TYPE
from semiseg.outputs.report import NOTICE, Report
from server.http.limits import MEGABYTE, Limits
from server.http.model import ServedModel
from server.http.models import ServedModels
from server.http.schemas import ErrorAnswer, JobAnswer, ModelEntry
from server.http.uploads import CHANNEL_PREFIX, FILES_FIELD

_REF = "#/components/schemas/{model}"

ERRORS = {
    400: "The request is not a usable form: no file in `scan`, an unknown field, an unknown `answer` or `model`, a "
    "form that ends early, or a DICOM SEG asked for a NIfTI file.",
    401: "The server asks for an API key, and the request has none or not a good one.",
    403: "A page of another server sent it, or it calls the server by a name that is not its own, and the "
    "server was not told to allow that.",
    408: "The upload stood still for too long.",
    413: "The upload is larger, or has more files, than the server accepts.",
    415: "The upload is not a multipart form, or what it holds is neither NIfTI (or another volume that is read) nor "
    "DICOM nor a zip.",
    422: "The upload is a scan that cannot be segmented: damaged, several series, slices that make no volume, another "
    "number of channels than the model takes, an archive that unpacks to too much.",
    429: "This client has as many requests here as it may; `Retry-After` says when to try again.",
    500: "The server failed on this scan.",
    503: "The model is still warming up, or the server is busy; `Retry-After` says when to try again.",
    504: "The request took longer than the server allows.",
    507: "The server's disk is nearly full.",
}
JOB_ERRORS = (401, 403, 404, 500)  # of a job that was accepted

RESPONSE_HEADERS = {
    "Server-Timing": "Milliseconds per stage: upload, reading, preprocessing, windows, network, blending, "
    "deciding, restoring, comparing, writing.",
    "X-Semiseg-Notice": NOTICE,
    "X-Semiseg-Model": "Identity of the model as JSON: name, sha256, method, version, precision, engine.",
    "X-Semiseg-Millilitres": "Volume of each segment in ml, by name, as JSON; if that is long, `{}`.",
    "X-Semiseg-Remarks": "What was noticed about the scan or done to it (a tilt corrected, slices missing), as JSON: a "
    "list of pairs of a code and a sentence; if that is long, of codes and empty sentences.",
    "X-Semiseg-Shortened": "The names of the headers that are in their short form, as JSON. Everything is in the "
    "body: in the form `json`, in the SEG and SR, in the document of a job.",
    "X-Semiseg-Windows": "Windows that the network ran.",
    "Content-Disposition": "A file name for the answer.",
}


def openapi_document(models: ServedModels, limits: Limits, *, jobs: bool) -> dict[str, Any]:
    """The OpenAPI document of a server that answers with ``models`` within ``limits``, with ``jobs`` or without."""
    schemas: dict[str, Any] = {}
    for model in (Report, ErrorAnswer, ModelEntry, *((JobAnswer,) if jobs else ())):
        schema = model.model_json_schema(ref_template=_REF, mode="serialization")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    form = _form(models, limits)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "semiseg",
            "version": version("semiseg"),
            "description": f"{NOTICE}. {' '.join(_describe_model(model) for model in models.by_name.values())}",
        },
        "servers": [{"url": "."}],
        "security": [{}, {"key": []}, {"header": []}],
        "paths": {
            "/segment": {"post": _segment(form)},
            **(_jobs(form) if jobs else {}),
            "/models": {
                "get": _get(
                    "models",
                    "The models, and a card of each",
                    {"type": "array", "items": {"$ref": _REF.format(model=ModelEntry.__name__)}},
                    (401,),
                )
            },
            "/livez": {"get": _probe("Alive", {"200": "The process answers."})},
            "/readyz": {
                "get": _probe("Ready", {"200": "Every model is loaded and warm.", "503": "One is warming up."})
            },
            "/metrics": {
                "get": _probe("Prometheus metrics", {"200": "In Prometheus' text format.", "401": ERRORS[401]})
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, where the server has any."},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
            },
        },
    }


def _segment(form: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": "segment",
        "summary": "Segment one scan",
        "description": "Send a volume in one file (NIfTI, NRRD, MetaImage, MGH), a zip of a DICOM series or of "
        "one such volume, or several DICOM files, each as a part named `scan`. A header and its data file (.hdr and "
        ".img, .mhd and .raw, .nhdr) are sent together or as a zip. The file's content decides its type, not its "
        "name. The answer lies on the scan's own grid. The server keeps nothing of it. With the header "
        f"`Accept: {RESULTS_MEDIA_TYPE}` any answer comes as a zip with a folder for each form, and the report in its "
        "folder `json`.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": _segmentation(RESULTS_MEDIA_TYPE), **_errors(*ERRORS)},
    }


def _jobs(form: dict[str, Any]) -> dict[str, Any]:
    job = {"$ref": _REF.format(model=JobAnswer.__name__)}
    one = [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "As POST /jobs answered it.",
            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        }
    ]
    again = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Two uploads of one client with one such key are one job, for as long as the job is kept, also "
        "after its end: send it again when an answer is lost. With another scan or other options the key is refused "
        "(422).",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    }
    only = {
        "name": "only",
        "in": "query",
        "description": "`stop` leaves a job that has ended as it is.",
        "schema": {"type": "string", "enum": ["stop"]},
    }
    form_again = {
        "name": "answer",
        "in": "query",
        "description": "Another form than the job was sent with, where that was `case`.",
        "schema": form["properties"]["answer"],
    }
    accepted = {
        "description": "The scan is on the server's disk and will be segmented, even if the server is stopped.",
        "headers": {"Location": {"description": "The job's address.", "schema": {"type": "string"}}},
        "content": {"application/json": {"schema": job}},
    }
    stopping = {
        "description": "It will stop after the window that runs.",
        "content": {"application/json": {"schema": job}},
    }
    events = {"description": "Events named `job`.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return {
        "/jobs": {
            "post": {
                "operationId": "postJob",
                "summary": "Let a scan be segmented, and ask for the answer later",
                "parameters": [again],
                "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
                "responses": {
                    "202": accepted,
                    **_errors(*(set(ERRORS) - {422})),
                    "422": _error("The Idempotency-Key was sent before with another scan or with other options."),
                },
            }
        },
        "/jobs/{id}": {
            "parameters": one,
            "get": _get("getJob", "How far a job is", job, JOB_ERRORS),
            "delete": {
                "operationId": "deleteJob",
                "summary": "Stop a job, or delete one that has ended, with its result",
                "parameters": [only],
                "responses": {
                    "200": {"description": "It is.", "content": {"application/json": {"schema": job}}},
                    "202": stopping,
                    **_errors(*JOB_ERRORS),
                },
            },
        },
        "/jobs/{id}/result": {
            "parameters": one,
            "get": {
                "operationId": "getResult",
                "summary": "The segmentation",
                "parameters": [form_again],
                "responses": {
                    "200": _segmentation(),
                    **_errors(*JOB_ERRORS, 400, 415, 422, 429, 503, 504, 507),
                    "409": _error("The job has not ended."),
                    "410": _error("The job was cancelled."),
                },
            },
        },
        "/jobs/{id}/events": {
            "parameters": one,
            "get": {
                "operationId": "watchJob",
                "summary": "The job at each change, as server-sent events, until it ends",
                "responses": {"200": events, **_errors(*JOB_ERRORS)},
            },
        },
    }


def _get(name: str, summary: str, schema: dict[str, Any], errors: Iterable[int]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": summary + ".", "content": {"application/json": {"schema": schema}}},
            **_errors(*errors),
        },
    }


def _segmentation(*more: str) -> dict[str, Any]:
    """The answer to a scan in any form, or of another media type of ``more``."""
    types = dict.fromkeys([*(form.media_type for form in FORMAT_TRAITS.values()), *more])
    return {
        "description": "The segmentation, in the form asked for.",
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in RESPONSE_HEADERS.items()
        },
        "content": {
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in types},
            FORMAT_TRAITS["json"].media_type: {"schema": {"$ref": _REF.format(model=Report.__name__)}},
        },
    }


def _form(models: ServedModels, limits: Limits) -> dict[str, Any]:
    manifests = [model.segmenter.manifest for model in models.by_name.values()]
    channels = dict.fromkeys(name for manifest in manifests for name in manifest.channel_names)
    alternatives = {tuple(manifest.channel_names): None for manifest in manifests}
    one = "|".join(OUTPUT_FORMATS)
    files = "; ".join(f"`{kind}` is {form.file_name} ({form.media_type})" for kind, form in FORMAT_TRAITS.items())
    return {
        "type": "object",
        "oneOf": [
            {"required": [FILES_FIELD]},
            *({"required": [CHANNEL_PREFIX + name for name in names]} for names in alternatives),
        ],
        "additionalProperties": False,
        "properties": {
            FILES_FIELD: {
                "type": "array",
                "minItems": 1,
                "maxItems": limits.files,
                "items": {"type": "string", "format": "binary"},
                "description": f"The file or files of one scan, {limits.upload_bytes / MEGABYTE:g} MB in all at "
                "most: one NIfTI file or other volume (4D for several channels), DICOM files or a zip of them, of "
                "which each channel gets the one series that its rule lets through.",
            },
            **{CHANNEL_PREFIX + name: _channel_field(name) for name in channels},
            "model": {
                "type": "string",
                "enum": list(models.by_name),
                "description": "Which model segments; may be left out where there is one.",
            },
            "answer": {
                "anyOf": [
                    {"type": "string", "enum": list(OUTPUT_FORMATS)},
                    {"type": "string", "pattern": f"^({one})(,({one}))+$"},
                ],
                "description": f"The form of the answer: {files}. Several with commas come as one zip with a folder "
                "for each, named as the form. Left out, the Accept header decides if it names one of these media "
                "types; else a volume in one file is answered with `nifti` and DICOM with `seg`.",
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
                "description": "Refuse a scan that would have to be corrected (a tilted gantry, uneven gaps, missing "
                "slices, a header that contradicts itself), or of which files would be left out (copies, damaged "
                "ones).",
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


def _errors(*statuses: int) -> dict[str, Any]:
    words = {**ERRORS, 404: "There is no such job; what has ended is kept for a while only."}
    return {str(status): _error(words[status]) for status in sorted(statuses)}


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=ErrorAnswer.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _probe(summary: str, answers: dict[str, str]) -> dict[str, Any]:
    return {"summary": summary, "responses": {status: {"description": text} for status, text in answers.items()}}


def _describe_model(model: ServedModel) -> str:
    manifest = model.segmenter.manifest
    segments = ", ".join(segment.name for segment in manifest.segments)
    channels = ", ".join(manifest.channel_names)
    return f"Model {manifest.name} outlines {segments} in a scan with the channel(s) {channels}."
