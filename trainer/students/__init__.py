"""The 3D networks that are kept. A recipe's ``student`` section says which, and its settings.

A student turns patches (N, inputs, X, Y, Z) into logits (N, outputs, X, Y, Z).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from semiseg.errors import sentence_of
from trainer.errors import RecipeError
from trainer.networks.mean import MeanOfNetworks
from trainer.students.convolutional import DynUNetStudent, PaperUNetStudent, SegResNetStudent, UNetStudent, VNetStudent
from trainer.students.outside import OutsideStudent
from trainer.students.slicewise import CanvasStudent, SlicedStudent
from trainer.students.student import Student, Triple
from trainer.students.transformers import SwinUNETRStudent, UNETRStudent

OneStudent = (
    UNetStudent
    | PaperUNetStudent
    | VNetStudent
    | SegResNetStudent
    | DynUNetStudent
    | UNETRStudent
    | SwinUNETRStudent
    | OutsideStudent
)


class MeanStudent(Student):
    """Several networks that answer with the mean of their probabilities.

    Attributes:
        members: the networks, each a section like this one.
        regions: segments overlap, so that probabilities are sigmoids and no softmax.
    """

    kind: Literal["mean"]
    members: Annotated[tuple[Annotated[OneStudent, Field(discriminator="kind")], ...], Field(min_length=2)]
    regions: bool = False

    @property
    def takes_any_size(self) -> bool:
        """Whether all do."""
        return all(member.takes_any_size for member in self.members)

    def divisor(self) -> Triple:
        """What suits all."""
        return divisor_of(self.members)

    def build(self, inputs: int, outputs: int, patch: Triple) -> nn.Module:
        """See :meth:`Student.build`."""
        return MeanOfNetworks((m.build(inputs, outputs, patch) for m in self.members), regions=self.regions)


AnyStudent = OneStudent | MeanStudent | SlicedStudent | CanvasStudent
_STUDENT: TypeAdapter[AnyStudent] = TypeAdapter(Annotated[AnyStudent, Field(discriminator="kind")])


def read_student(section: dict[str, Any], where: str = "student") -> AnyStudent:
    """Validate a recipe's ``student`` section, or that of another 3D network, which stands at ``where``.

    Raises:
        RecipeError: an unknown kind or setting.
    """
    try:
        return _STUDENT.validate_python(section)
    except ValidationError as error:
        raise RecipeError(f"In the recipe, {where}: {sentence_of(error)}.") from None


def divisor_of(students: Iterable[Student]) -> Triple:
    """A patch's sides must be multiples of these to suit all the students."""
    x, y, z = (math.lcm(*sides) for sides in zip(*(s.divisor() for s in students), strict=True))
    return (x, y, z)


def parameters_of(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())
