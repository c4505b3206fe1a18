"""The methods by name, see :mod:`trainer.methods.registry`."""

from __future__ import annotations

from trainer.errors import RecipeError
from trainer.methods.method import Method, SegmentationTask
from trainer.methods.registry import BUILT_IN, method_class
from trainer.recipe import Recipe

METHODS: dict[str, type[Method]] = {name: method_class(name) for name in BUILT_IN}


def make_method(recipe: Recipe, task: SegmentationTask) -> Method:
    """Create the method that a recipe names, with its settings.

    Raises:
        RecipeError: See :func:`find_method`; or the method cannot work with the recipe's values for this task.
    """
    return find_method(recipe)(recipe, task)


def find_method(recipe: Recipe) -> type[Method]:
    """Return the class of the method that a recipe names.

    Raises:
        RecipeError: The method is unknown, ``methods:`` has settings of an unknown method, or a setting is invalid.
    """
    chosen = _class(recipe.method)
    for name in recipe.methods:
        if name != chosen.name:
            _class(name).read_config(recipe)  # a mistake in a later stage's settings would show days later
    chosen.read_config(recipe)
    return chosen


def _class(name: str) -> type[Method]:
    try:
        return method_class(name)
    except ValueError as error:
        sentence = str(error)
        raise RecipeError(f"{sentence[0].upper()}{sentence[1:]}.") from None
