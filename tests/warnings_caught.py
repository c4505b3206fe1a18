"""Warnings that a test caught, without those of others that happen to fall into the same lines."""

from __future__ import annotations

from collections.abc import Iterable
from warnings import WarningMessage


def deprecations(caught: Iterable[WarningMessage]) -> list[WarningMessage]:
    """The deprecations among them; an earlier test's connection that is collected just now warns, too."""
    return [one for one in caught if one.category is DeprecationWarning]
