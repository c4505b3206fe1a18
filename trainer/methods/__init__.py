"""The methods, one file a paper. Adding one touches its own file and this table."""

from __future__ import annotations

from trainer.errors import RecipeError
from trainer.methods.acmt import ACMT
from trainer.methods.bcp import BCP
from trainer.methods.cfr import CFR
from trainer.methods.comparative import Comparative, Contrastive
from trainer.methods.cps import CPS
from trainer.methods.dual import Dual
from trainer.methods.magicnet import MagicNet
from trainer.methods.mean_teacher import MeanTeacher
from trainer.methods.method import Method, Task
from trainer.methods.mn import MN
from trainer.methods.self_training import SelfTraining
from trainer.methods.supervised import Supervised
from trainer.methods.uamt import UAMT
from trainer.recipe import Recipe

_ALONE = (Supervised, SelfTraining, MeanTeacher, UAMT, CPS, ACMT, MagicNet, BCP, Dual, MN)
_BEFORE_ANOTHER = (CFR, Comparative, Contrastive)
METHODS: dict[str, type[Method]] = {m.name: m for m in (*_ALONE, *_BEFORE_ANOTHER)}


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
