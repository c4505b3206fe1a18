"""A first stage that another method follows, which its settings name."""

from __future__ import annotations

from typing import ClassVar

from trainer.errors import RecipeError
from trainer.methods.method import Method, SegmentationTask
from trainer.methods.registry import method_class
from trainer.network_configs import AnyNetworkConfig
from trainer.recipe import Recipe


class PretrainThenTrain(Method):
    """A method that is a first stage; any other method follows, unchanged.

    Attributes:
        next_method_key: Name of the setting that names the method that follows.
        host: Method that follows; its settings stand in the recipe under its own name, as if it were used alone.
    """

    next_method_key: ClassVar[str]
    former_members: ClassVar[dict[str, str]] = {"refuse_circles": "check_no_cycle", "switch": "next_method_key"}

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`; the method that follows reads its own section of the recipe."""
        super().__init__(recipe, task)
        self.check_no_cycle(recipe)
        self.host = self._chosen(recipe)(recipe, task)

    @classmethod
    def check_no_cycle(cls, recipe: Recipe) -> None:
        """Refuse a method that would follow itself.

        Raises:
            RecipeError: The chain of methods has a cycle.
        """
        chain = cls.chain(recipe)
        if chain[-1] in chain[:-1]:
            raise RecipeError(
                f"In the recipe, methods.{cls.name}.{cls.next_method_key}: {' -> '.join(chain)} is a cycle."
            )

    @classmethod
    def chain(cls, recipe: Recipe) -> list[str]:
        """Return the names of this method and of those that follow it; the first repeated name ends the list."""
        names, following = [cls.name], cls._chosen(recipe)
        while following.name not in names and issubclass(following, PretrainThenTrain):
            names.append(following.name)
            following = following._chosen(recipe)
        return [*names, following.name]

    def stages(self) -> tuple[Method, ...]:
        """Return this stage and those of the method that follows."""
        return (self, *self.host.stages())

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """Return the configurations of the method that follows."""
        return cls._chosen(recipe).students(recipe)

    @classmethod
    def _chosen(cls, recipe: Recipe) -> type[Method]:
        return method_class(getattr(cls.read_config(recipe), cls.next_method_key))
