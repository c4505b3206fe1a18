"""The methods by name: those of :mod:`trainer.methods.alone`, those that hand over to one of them, and distillation."""

from __future__ import annotations

from trainer.errors import RecipeError
from trainer.methods.alone import ALONE
from trainer.methods.cfr import CFR
from trainer.methods.comparative import Comparative, Contrastive
from trainer.methods.distil import Distil
from trainer.methods.method import Method, Task
from trainer.recipe import Recipe

METHODS: dict[str, type[Method]] = {**ALONE, **{m.name: m for m in (CFR, Comparative, Contrastive, Distil)}}


def make_method(recipe: Recipe, task: Task) -> Method:
    """The method that a recipe names, with its switches.

    Raises:
        RecipeError: see :func:`find_method`; or what the recipe asks of the method cannot work for the task.
    """
    return find_method(recipe)(recipe, task)


def find_method(recipe: Recipe) -> type[Method]:
    """The class of the method that a recipe names.

    Raises:
        RecipeError: an unknown method, unknown methods in ``methods:``, or a switch that does not hold.
    """
    unknown = [name for name in (recipe.method, *recipe.methods) if name not in METHODS]
    if unknown:
        raise RecipeError(f"There is no method {unknown[0]!r}; there are {', '.join(METHODS)}.")
    for name in recipe.methods:
        METHODS[name].read_switches(recipe)  # a mistake in what another method is told would come out days later
    return METHODS[recipe.method]
