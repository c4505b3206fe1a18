"""Answers that are no segmentations: a sentence for whoever can mend what was wrong."""

from __future__ import annotations

import errno
import logging
import secrets
import traceback
from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

from semiseg.errors import EngineError
from server.http.limits import ApiError, disk_full_error
from server.http.schemas import ErrorAnswer
from server.jobs.database import QueueDiskFullError, QueueError
from server.jobs.queue import QueueFull

RETRY_AFTER = 30  # seconds until it is worth asking again
_LOG = logging.getLogger("semiseg.server")


def error_response(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """A sentence as the JSON that every error is answered with."""
    return JSONResponse(ErrorAnswer(error=sentence).model_dump(), status, headers=headers)


def api_error_response(refusal: ApiError) -> Response:
    """The answer to a request that is refused."""
    return error_response(refusal.status, str(refusal), refusal.headers)


def to_api_error(error: Exception) -> ApiError:
    """What a caller is told of an error that nobody foresaw: the place in the log, where it is written down.

    The log gets the kind of the error and where it happened. Its message is left out: it may quote the scan's
    attributes.
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
            "The server cannot write down jobs at present; its operator has to look at its disk.",
            headers={"Retry-After": str(RETRY_AFTER)},
        )
    reference = secrets.token_hex(4)
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    told = {"reference": reference, "kind": type(error).__name__, "detail": _detail(error), "frames": frames}
    _LOG.error("A scan failed", extra={"fields": {name: value for name, value in told.items() if value}})
    return ApiError(500, f"The server failed on this scan; its log says where, under reference {reference}.")


def _detail(error: Exception) -> str:
    """What can be said of an error without quoting a scan: our own sentences, and the names that programs have."""
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
