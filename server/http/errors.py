"""Error responses: a status and one sentence that says what is wrong and what to do."""

from __future__ import annotations

import errno
import logging
import secrets
import traceback
from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

from semiseg.errors import EngineError
from server.http.limits import ApiError, disk_full_error
from server.http.schemas import ErrorResponse
from server.jobs.database import QueueDiskFullError, QueueError
from server.jobs.queue import QueueFull

RETRY_AFTER = 30  # seconds after which a client may retry
_LOG = logging.getLogger("semiseg.server")


def error_response(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Make the JSON response that all errors have."""
    return JSONResponse(ErrorResponse(error=sentence).model_dump(), status, headers=headers)


def api_error_response(refusal: ApiError) -> Response:
    """Make the response of an :class:`ApiError`."""
    return error_response(refusal.status, str(refusal), refusal.headers)


def to_api_error(error: Exception) -> ApiError:
    """Convert any error to an :class:`ApiError`; for an unexpected error its message is a reference to the log entry.

    The log entry has the type of the error and where it happened. The error's message is left out, because it may quote
    attributes of the scan.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full_error()
    if isinstance(error, QueueDiskFullError):
        _LOG.error("%s", error)
        return disk_full_error()
    if isinstance(error, QueueFull):
        return ApiError(503, str(error), headers={"Retry-After": str(RETRY_AFTER)})
    if isinstance(error, QueueError):
        _LOG.error("%s", error)
        return ApiError(
            503,
            "The server cannot store jobs at present; its operator has to check its disk.",
            headers={"Retry-After": str(RETRY_AFTER)},
        )
    reference = secrets.token_hex(4)
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    told = {"reference": reference, "kind": type(error).__name__, "detail": _detail(error), "frames": frames}
    _LOG.error("A scan failed", extra={"fields": {name: value for name, value in told.items() if value}})
    return ApiError(500, f"The server failed on this scan; its log has the details under reference {reference}.")


def _detail(error: Exception) -> str:
    """The details of an error that cannot quote a scan: messages of semiseg, and names of attributes and modules."""
    if isinstance(error, EngineError):
        return str(error)
    if isinstance(error, AttributeError) and error.name:
        return f"{type(error.obj).__name__} has no attribute {error.name}"
    if isinstance(error, ImportError) and error.name:
        return f"no module {error.name}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    caused = error.__cause__ or error.__context__
    return f"while handling {type(caused).__name__}" if caused else ""
