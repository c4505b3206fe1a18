"""Refusals of recipe keys that more than one method cannot follow."""

from __future__ import annotations

from trainer.errors import RecipeError
from trainer.methods.method import Method


def reject_deep_supervision(method: Method, because: str) -> None:
    """Refuse the recipe key ``deep_supervision`` for a method whose further outputs are of another kind.

    Raises:
        RecipeError: The recipe has it.
    """
    if method.recipe.deep_supervision:
        raise RecipeError(f"In the recipe, deep_supervision: {method.name} {because}; leave it out.")


def reject_initial_run(method: Method, weights: str) -> None:
    """Refuse the recipe key ``start``, a run with a 3D student, for a method that keeps a network for images.

    Args:
        method: The method.
        weights: Recipe key of the weights that its network begins with.

    Raises:
        RecipeError: The recipe has it.
    """
    if method.recipe.start is not None:
        raise RecipeError(
            f"In the recipe, start: {method.name} begins with `{weights}` and not with another run; leave `start` out."
        )
