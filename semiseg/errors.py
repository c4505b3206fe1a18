"""What goes wrong, as sentences for the person who can mend it.

Every error that semiseg raises on purpose derives from :class:`SemisegError`. Its message is one sentence (or a few)
that names what was wrong, with which file, and what to do. It is raised where the fact is known and caught once at the
edge: the command line prints it, the HTTP server answers with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SemisegError(Exception):
    """Something failed that was not the caller's doing: exit code 1, HTTP 500."""

    exit_code = 1


class InputError(SemisegError):
    """What the caller gave cannot be used: exit code 2, HTTP 4xx."""

    exit_code = 2


class VolumeError(InputError):
    """A NIfTI file or DICOM series that is not one volume, or not readable."""


class DatasetError(InputError):
    """A dataset folder or split that contradicts itself or the files in it."""


class BundleError(InputError):
    """A bundle or run folder that is incomplete, altered, of another version, or lies about itself."""


class EngineError(SemisegError):
    """The inference library cannot run this model on this machine."""


class Cancelled(SemisegError):  # noqa: N818 - what happened is not an error of anybody
    """The caller asked to stop before the last window was done."""


def validation_message(error: ValidationError) -> str:
    """The first complaint of a pydantic error as part of a sentence, with the place it is about."""
    problems: list[Any] = error.errors(include_url=False, include_context=False)
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
