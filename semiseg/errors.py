"""Exceptions of semiseg.

Every error that semiseg raises on purpose derives from :class:`SemisegError`. Its message is one sentence (or a few)
that names the problem, the file, and the remedy. It is raised where the fact is known and caught once: the command line
prints the message, the HTTP server sends it in its response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SemisegError(Exception):
    """A failure that the caller's input did not cause: exit code 1, HTTP 500.

    Examples:
        >>> import semiseg
        >>> try:
        ...     semiseg.open_scan("nowhere.nii.gz")
        ... except semiseg.SemisegError as error:
        ...     print(error)
        nowhere.nii.gz: there is no such file or folder.
    """

    exit_code = 1


class InputError(SemisegError):
    """The caller's input cannot be used: exit code 2, HTTP 4xx."""

    exit_code = 2


class VolumeError(InputError):
    """A NIfTI file or DICOM series is not a single volume, or cannot be read."""


class DatasetError(InputError):
    """A dataset folder or split contradicts itself or the files in the folder."""


class BundleError(InputError):
    """A bundle or run folder is incomplete, altered, of another version, or contradicts its manifest."""


class EngineError(SemisegError):
    """The inference library cannot run this model on this machine."""


class Cancelled(SemisegError):  # noqa: N818 - a cancellation is not an error
    """The caller cancelled the prediction before the last window was done."""


def validation_message(error: ValidationError) -> str:
    """Format the first problem of a pydantic error, with the path of the field, as part of a sentence."""
    problems: list[Any] = error.errors(include_url=False, include_context=False)
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
