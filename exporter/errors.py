"""Errors of the export (see :mod:`semiseg.errors`)."""

from semiseg.errors import InputError, SemisegError


class ExportError(SemisegError):
    """The graph cannot be created, or its results differ from the network's. No bundle was written."""


class MissingToolError(InputError):
    """The request needs software or a device that this machine does not have."""
