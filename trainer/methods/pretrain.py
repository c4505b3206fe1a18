"""A stage that comes before another method, which its switches name."""

from __future__ import annotations

from typing import ClassVar

from trainer.methods.method import Method, Task
from trainer.methods.registry import method_class
from trainer.recipe import Recipe
from trainer.students import AnyStudent


class PretrainThenTrain(Method):
    """A method that is a first stage; any other method follows, unchanged.

    Attributes:
        switch: Name of the switch that names the method that follows.
        host: Method that follows; its switches stand in the recipe under its own name, as for it alone.
    """

    switch: ClassVar[str]

    def __init__(self, recipe: Recipe, task: Task) -> None:
        """See :class:`Method`; the method that follows reads its own section."""
        super().__init__(recipe, task)
        self.host = self._chosen(recipe)(recipe, task)

    def stages(self) -> tuple[Method, ...]:
        """This one, then those of the method that follows."""
        return (self, *self.host.stages())

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyStudent, ...]:
        """Those of the method that follows."""
        return cls._chosen(recipe).students(recipe)

    @classmethod
    def _chosen(cls, recipe: Recipe) -> type[Method]:
        return method_class(getattr(cls.read_switches(recipe), cls.switch))
