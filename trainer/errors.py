"""Errors of training (see :mod:`semiseg.errors`)."""

from semiseg.errors import InputError, SemisegError


class RecipeError(InputError):
    """A recipe is invalid or does not suit the dataset, the method or the machine."""


class RunError(InputError):
    """A run folder is incomplete, was altered, or belongs to another recipe."""


class TrainingError(SemisegError):
    """Training cannot continue, for example because the loss is not finite."""


class BudgetTooSmallError(RecipeError):
    """A time budget allows too few updates."""
