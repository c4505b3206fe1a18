"""What goes wrong in training, as sentences (see :mod:`semiseg.errors`)."""

from semiseg.errors import InputError, SemisegError


class RecipeError(InputError):
    """A recipe that contradicts itself, the dataset, or the method."""


class RunError(InputError):
    """A run folder that is incomplete, altered, or belongs to another recipe."""


class TrainingError(SemisegError):
    """Training cannot go on: the loss is not finite, say."""
