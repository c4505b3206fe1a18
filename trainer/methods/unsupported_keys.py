"""Checks that refuse recipe keys which several methods do not support."""

from __future__ import annotations

from trainer.errors import RecipeError
from trainer.methods.method import Method


def reject_deep_supervision(method: Method, because: str) -> None:
    """Refuse the recipe key ``deep_supervision`` for a method that does not support it.

    Args:
        method: The method.
        because: The reason, as a clause that continues the method's name.

    Raises:
        RecipeError: The recipe has the key.
    """
    if method.recipe.deep_supervision:
        raise RecipeError(f"In the recipe, deep_supervision: {method.name} {because}; leave it out.")


def reject_initial_run(method: Method, weights: str) -> None:
    """Refuse the recipe key ``init_from``, which names a run with a 3D student, for a method that trains a 2D network.

    Args:
        method: The method.
        weights: Recipe key of the weights that its network starts from.

    Raises:
        RecipeError: The recipe has the key.
    """
    if method.recipe.init_from is not None:
        raise RecipeError(
            f"In the recipe, init_from: {method.name} starts from `{weights}` and not from another run; "
            "leave `init_from` out."
        )
