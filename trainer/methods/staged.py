"""A method that does something of its own first and then hands the student over to another method, its host."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import AfterValidator
from torch import Tensor, nn

from semiseg.bundle.manifest import PretrainedWeights
from trainer.methods.method import Method, Networks, Task, Turn
from trainer.patches import Batch
from trainer.recipe import Optimiser, Recipe
from trainer.students import AnyStudent


class Staged(Method):
    """The steps before the host's are :meth:`own_turn` and :meth:`own_loss`; from then on all questions go to the host.

    Attributes:
        hosts: the methods that may follow, by name.
        switch: which of the switches names one of them.
        own: the networks that the host does not know.
        host: the one that follows; its switches stand in the recipe under its own name, as for it alone.
        first: how many steps come before its first.
    """

    hosts: ClassVar[Mapping[str, type[Method]]]
    switch: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Recipe, task: Task) -> None:
        """See :class:`Method`; the host reads its own section."""
        super().__init__(recipe, task)
        host = self._chosen(recipe)
        self.patches_together = host.patches_together
        self.host = host(recipe, task)

    @property
    @abstractmethod
    def first(self) -> int:
        """Steps before the host's."""

    @abstractmethod
    def own_turn(self, step: int) -> Turn:
        """What happens at ``step`` before the host begins."""

    @abstractmethod
    def own_loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """Its loss."""

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyStudent, ...]:
        """The host's."""
        return cls._chosen(recipe).students(recipe)

    @property
    def steps(self) -> int:
        """Its own, then the host's."""
        return self.first + self.host.steps

    def turn(self, step: int) -> Turn:
        """See :meth:`Method.turn`."""
        if step < self.first:
            return self.own_turn(step)
        return replace(self.host.turn(step - self.first), host=self.host.name)

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """See :meth:`Method.loss`."""
        if turn.host:
            return self.host.loss(self.of_host(networks), batch, turn)
        return self.own_loss(networks, batch, turn)

    def prepare(self, networks: Networks, turn: Turn) -> None:
        """While the host trains, networks that it does not know are in evaluation mode."""
        if not turn.host:
            super().prepare(networks, turn)
            return
        self.host.prepare(self.of_host(networks), turn)
        for name in self.own:
            networks[name].eval()

    def after_update(self, networks: Networks, turn: Turn) -> None:
        """See the host."""
        if turn.host:
            self.host.after_update(self.of_host(networks), turn)

    def optimiser(self, network: str) -> Optimiser:
        """See the host."""
        return self.host.optimiser(network)

    def refreshes_foreground(self, step: int) -> bool:
        """See the host."""
        return step >= self.first and self.host.refreshes_foreground(step - self.first)

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """See the host."""
        return step >= self.first and self.host.refreshes_pseudo_labels(step - self.first)

    def restarts(self, step: int) -> tuple[str, ...]:
        """See the host."""
        return self.host.restarts(step - self.first) if step >= self.first else ()

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """See the host."""
        return self.host.pretrained()

    def exported(self, networks: Networks) -> nn.Module:
        """See the host."""
        return self.host.exported(self.of_host(networks))

    def kept(self) -> AnyStudent:
        """See the host."""
        return self.host.kept()

    def voters(self, networks: Networks) -> Networks:
        """See the host."""
        return self.host.voters(self.of_host(networks))

    def of_host(self, networks: Networks) -> Networks:
        """The networks that the host knows."""
        return {name: network for name, network in networks.items() if name not in self.own}

    @classmethod
    def _chosen(cls, recipe: Recipe) -> type[Method]:
        return cls.hosts[getattr(cls.read_switches(recipe), cls.switch)]


def one_of(hosts: Mapping[str, type[Method]]) -> AfterValidator:
    """For a switch that names a host."""

    def known(name: str) -> str:
        if name not in hosts:
            raise ValueError(f"there is no {name!r} that may follow; there are {', '.join(hosts)}")
        return name

    return AfterValidator(known)
