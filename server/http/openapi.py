"""The OpenAPI 3.1 document of the server, /docs.json: all paths, fields, responses and errors."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from semiseg.outputs.formats import DICOM_FORMATS, OUTPUT_FORMATS, RESULTS_MEDIA_TYPE
from semiseg.outputs.report import NOTICE, Report
from server.http.limits import MEGABYTE, Limits
from server.http.model import ServedModel
from server.http.models import ServedModels
from server.http.schemas import ErrorResponse, JobResponse, ModelEntry
from server.http.uploads import CHANNEL_PREFIX, FILES_FIELD

_REF = "#/components/schemas/{model}"

ERRORS = {
    400: "The form is not valid: it has no file in `scan`, an unknown field, an unknown `output_format` or `model`, or "
    "no end, or it requests an output format that the scan does not allow, such as a DICOM SEG of a NIfTI file.",
    401: "The server needs an API key, and the request has none or an invalid one.",
    403: "A page of another server sent the request, or the request has a host name that the server's configuration "
    "does not allow.",
    408: "The upload stalled for too long.",
    413: "The upload is larger, or has more files, than the server accepts.",
    415: "The upload is not a multipart form, or it contains neither NIfTI (or another supported volume) nor DICOM nor "
    "a zip.",
    422: "The scan cannot be segmented: it is damaged, has several series, slices that form no volume, or another "
    "number of channels than the model takes, or its archive unpacks to too much data.",
    429: "This client has reached its limit of requests; the header `Retry-After` tells when to try again.",
    500: "An unexpected error occurred on the server.",
    503: "The model is still warming up, or the server is busy; the header `Retry-After` tells when to try again.",
    504: "The request took longer than the server allows.",
    507: "The server's disk is nearly full.",
}
UNAVAILABLE = (
    "The server cannot read its jobs or its API keys at present; the header `Retry-After` tells when to try again."
)

RESPONSE_HEADERS = {
    "Server-Timing": "Duration of each stage in milliseconds: upload, reading, preprocessing, windows, network, "
    "blending, coarse (if the model has a coarse pass), deciding, restoring, comparing, writing.",
    "X-Semiseg-Notice": NOTICE,
    "X-Semiseg-Model": "Identity of the model as JSON: name, sha256, method, version, precision, engine.",
    "X-Semiseg-Millilitres": "Volume of each segment in ml, by name, as JSON; `{}` if that would be too long.",
    "X-Semiseg-Remarks": "Warnings about the scan and corrections of it (a tilt corrected, slices missing), as JSON: a "
    "list of pairs of a code and a sentence; if that would be too long, of codes and empty sentences.",
    "X-Semiseg-Shortened": "Names of the headers that are shortened, as JSON. The complete values are in the output "
    "format `json`, in the SEG and SR, and in the document of a job.",
    "X-Semiseg-Windows": "Number of windows that the network ran.",
    "Content-Disposition": "File name for the result.",
}


def openapi_document(models: ServedModels, limits: Limits, *, jobs: bool) -> dict[str, Any]:
    """Make the OpenAPI document of a server.

    Args:
        models: Models of the server.
        limits: Limits of the server.
        jobs: True if the server has the endpoints below /jobs.
    """
    schemas: dict[str, Any] = {}
    for model in (Report, ErrorResponse, ModelEntry, *((JobResponse,) if jobs else ())):
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
                    "List the models",
                    "The models of this server, each with its model card.",
                    {"type": "array", "items": {"$ref": _REF.format(model=ModelEntry.__name__)}},
                    _errors(401),
                )
            },
            "/livez": {"get": _probe("Check that the process is alive", {"200": "The process is alive."})},
            "/readyz": {
                "get": _probe(
                    "Check that the models are ready",
                    {"200": "All models are loaded and warmed up.", "503": "A model is still warming up."},
                )
            },
            "/metrics": {
                "get": _probe(
                    "Read the metrics", {"200": "The metrics in Prometheus' text format.", "401": ERRORS[401]}
                )
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "API key, if the server needs one."},
                "header": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "API key, if the server needs one.",
                },
            },
        },
    }


def _segment(form: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": "segment",
        "summary": "Segment one scan",
        "description": "Send a volume in one file (NIfTI, NRRD, MetaImage, MGH), a zip of a DICOM series or of "
        "one such volume, or several DICOM files, each as a part named `scan`. Send a header and its data file (.hdr "
        "and .img, .mhd and .raw, .nhdr) together or as a zip. The file's content decides its type, not its "
        "name. The segmentation has the grid of the scan. The server keeps neither the scan nor the result. With the "
        f"header `Accept: {RESULTS_MEDIA_TYPE}` the result is always a zip with a folder for each output format, and "
        "with the report in the folder `json`.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": _segmentation(RESULTS_MEDIA_TYPE), **_errors(*ERRORS)},
    }


def _jobs(form: dict[str, Any]) -> dict[str, Any]:
    job = {"$ref": _REF.format(model=JobResponse.__name__)}
    one = [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "Identifier of the job, from the response of POST /jobs.",
            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        }
    ]
    again = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Uploads of one client with the same key make one job, for as long as the job is kept, also "
        "after its end. If a response was lost, repeat the request with the same key. A request with the same key but "
        "another scan or other options is rejected (422).",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    }
    only = {
        "name": "only",
        "in": "query",
        "description": "With `stop`, a job that has ended is not deleted.",
        "schema": {"type": "string", "enum": ["stop"]},
    }
    form_again = {
        "name": "output_format",
        "in": "query",
        "description": "Output format of the result, if the job was sent with `output_format` = `viewer-bundle`; "
        "the default is the format that the job was sent with.",
        "schema": form["properties"]["output_format"],
    }
    accepted = {
        "description": "The job was accepted. The scan is stored on the server's disk and will be segmented, even if "
        "the server is restarted in between.",
        "headers": {"Location": {"description": "URL of the job.", "schema": {"type": "string"}}},
        "content": {"application/json": {"schema": job}},
    }
    stopping = {
        "description": "The job is running and will stop after the current window.",
        "content": {"application/json": {"schema": job}},
    }
    events = {
        "description": "Server-sent events named `job`; the data of each is the document of the job.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        "/jobs": {
            "post": {
                "operationId": "postJob",
                "summary": "Submit a scan as a job whose result is fetched later",
                "parameters": [again],
                "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
                "responses": {
                    "202": accepted,
                    **_errors(*(set(ERRORS) - {422})),
                    "422": _error("The Idempotency-Key was already used with another scan or other options."),
                },
            }
        },
        "/jobs/{id}": {
            "parameters": one,
            "get": _get("getJob", "Read the state of a job", "The state and progress of the job.", job, _job_errors()),
            "delete": {
                "operationId": "deleteJob",
                "summary": "Cancel a job, or delete a job that has ended, with its result",
                "parameters": [only],
                "responses": {
                    "200": {
                        "description": "The job was cancelled or deleted. With `only=stop`, a job that had ended is "
                        "unchanged.",
                        "content": {"application/json": {"schema": job}},
                    },
                    "202": stopping,
                    **_job_errors(507),
                },
            },
        },
        "/jobs/{id}/result": {
            "parameters": one,
            "get": {
                "operationId": "getResult",
                "summary": "Fetch the result of a job",
                "parameters": [form_again],
                "responses": {
                    "200": _segmentation(),
                    **_errors(401, 403, 404, 500, 400, 415, 422, 429, 503, 504, 507),
                    "409": _error("The job has not ended."),
                    "410": _error("The job was cancelled."),
                },
            },
        },
        "/jobs/{id}/events": {
            "parameters": one,
            "get": {
                "operationId": "watchJob",
                "summary": "Watch a job: a server-sent event for each change, until it ends",
                "responses": {
                    "200": events,
                    **_job_errors(),
                    "429": _error("This client watches too many jobs already; read the state of the job instead."),
                },
            },
        },
    }


def _get(
    name: str,
    summary: str,
    description: str,
    schema: dict[str, Any],
    errors: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": description, "content": {"application/json": {"schema": schema}}},
            **errors,
        },
    }


def _segmentation(*more: str) -> dict[str, Any]:
    """The response with a segmentation, in the media types of the output formats and those in ``more``."""
    types = dict.fromkeys([*(form.media_type for form in OUTPUT_FORMATS.values()), *more])
    return {
        "description": "The segmentation, in the requested output format.",
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in RESPONSE_HEADERS.items()
        },
        "content": {
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in types},
            OUTPUT_FORMATS["json"].media_type: {"schema": {"$ref": _REF.format(model=Report.__name__)}},
        },
    }


def _form(models: ServedModels, limits: Limits) -> dict[str, Any]:
    manifests = [model.segmenter.manifest for model in models.by_name.values()]
    channels = dict.fromkeys(name for manifest in manifests for name in manifest.channel_names)
    alternatives = {tuple(manifest.channel_names): None for manifest in manifests}
    one = "|".join(OUTPUT_FORMATS)
    files = "; ".join(f"`{kind}` is {form.file_name} ({form.media_type})" for kind, form in OUTPUT_FORMATS.items())
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
                "description": "The file or files of one scan, with a total size of at most "
                f"{limits.upload_bytes / MEGABYTE:g} MB: one NIfTI file or other volume (4D for several channels), or "
                "DICOM files or a zip of them, from which the model's rules select one series for each channel.",
            },
            **{CHANNEL_PREFIX + name: _channel_field(name) for name in channels},
            "model": {
                "type": "string",
                "enum": list(models.by_name),
                "description": "Name of the model; may be omitted if the server has only one.",
            },
            "output_format": {
                "anyOf": [
                    {"type": "string", "enum": list(OUTPUT_FORMATS)},
                    {"type": "string", "pattern": f"^({one})(,({one}))+$"},
                ],
                "x-needs-dicom": list(DICOM_FORMATS),
                "description": f"Output format of the result: {files}. Several formats, separated by commas, are "
                "returned as one zip with a folder named after each format. If the field is omitted, the first of "
                "these media types in the Accept header decides; without one, the format is `nifti` for a volume in "
                "one file and `seg` for DICOM. The former name of the field, `answer`, is still accepted.",
            },
            "series": {
                "type": "string",
                "maxLength": 1024,
                "description": "Series Instance UID of the series to segment, if the files contain several; for "
                "several channels NAME=UID,NAME=UID.",
            },
            "aligned": {
                "type": "string",
                "enum": ["true", "false"],
                "default": "false",
                "description": "If true, the channels are taken as aligned although they have different grids and no "
                "common frame of reference; they are resampled onto the grid of the first channel.",
            },
            "strict": {
                "type": "string",
                "enum": ["true", "false"],
                "default": "false",
                "description": "If true, a scan is rejected that would have to be corrected (a tilted gantry, uneven "
                "gaps, missing slices, a contradictory header), or of which files would be skipped (copies, damaged "
                "files).",
            },
            "full": {
                "type": "string",
                "enum": ["true", "false"],
                "default": "false",
                "description": "If true, all windows are run, also if the model has a coarse pass, with which windows "
                "of background are skipped. The report gives the number of windows that were run and the reason.",
            },
        },
    }


def _channel_field(name: str) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": f"The file or files of the channel {name}. If one channel is sent in its own field, all of them "
        f"must be, and `{FILES_FIELD}` is omitted.",
    }


def _job_errors(*more: int) -> dict[str, Any]:
    """The errors of requests for an accepted job, and further ones."""
    return {**_errors(401, 403, 404, 500, *more), "503": _error(UNAVAILABLE)}


def _errors(*statuses: int) -> dict[str, Any]:
    words = {**ERRORS, 404: "There is no such job; a job is deleted some time after its end."}
    return {str(status): _error(words[status]) for status in sorted(statuses)}


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=ErrorResponse.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _probe(summary: str, answers: dict[str, str]) -> dict[str, Any]:
    return {"summary": summary, "responses": {status: {"description": text} for status, text in answers.items()}}


def _describe_model(model: ServedModel) -> str:
    manifest = model.segmenter.manifest
    segments = ", ".join(segment.name for segment in manifest.segments)
    channels = ", ".join(manifest.channel_names)
    return f"The model {manifest.name} segments {segments} in a scan with the channel(s) {channels}."
