"""What goes wrong in export, as sentences (see :mod:`semiseg.errors`)."""

from semiseg.errors import InputError, SemisegError


class ExportError(SemisegError):
    """The graph cannot be made, or it does not compute what the network computes. No bundle was written."""


class MissingToolError(InputError):
    """What was asked for needs software or a device that this machine does not have."""
