"""One model, several graphs: the same network in other precisions, each with the proof of what it cost."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from semiseg.errors import InputError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Size = Annotated[int, Field(ge=1, le=4096)]
Window = tuple[Size, Size, Size]
Share = Annotated[float, Field(ge=0, le=1)]


def parse_precision(name: str | None) -> Precision | None:
    """The precision of this name; None for None.

    Raises:
        InputError: There is no precision of this name.
    """
    if name is None:
        return None
    for precision in PRECISIONS:
        if name.lower() == precision:
            return precision
    raise InputError(f"A precision is {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {name!r}.")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gate(_Document):
    """What a graph has to reach before it is written, on windows of real scans.

    Attributes:
        difference: largest difference of a logit to the trained network's, for fp32; round-off through a UNet stays
            below 1e-3. In other precisions logits may differ, masks may not.
        fp32, fp16, bf16, int8: least Dice, of every segment, between the graph's mask and the trained network's.
    """

    difference: Annotated[float, Field(gt=0)] = 1e-2
    fp32: Share = 0.999
    fp16: Share = 0.995
    bf16: Share = 0.995
    int8: Share = 0.995

    def dice(self, precision: Precision) -> float:
        """The least Dice for a graph of this precision."""
        return float(getattr(self, precision))


class Parity(_Document):
    """How far a graph, run by one engine, is from the trained network, on windows of one size of real scans.

    Attributes:
        engine: what ran it.
        window: voxels.
        windows: how many.
        largest_difference: of a logit.
        dice: between the masks of each segment that one of the two draws.
    """

    engine: str
    window: Window
    windows: int
    largest_difference: float
    dice: dict[str, float]

    @property
    def least_dice(self) -> float:
        """Of the worst segment; 1 where neither draws any."""
        return min(self.dice.values(), default=1.0)


class Variant(_Document):
    """One graph of the bundle.

    Attributes:
        precision: of its weights and activations.
        file: its name in the bundle.
        parity: its proofs, at least one for each allowed window.
    """

    precision: Precision
    file: str
    parity: tuple[Parity, ...] = ()

    def verified_on(self, engine: str) -> bool:
        """Whether it passed the gate when this engine ran it."""
        return any(parity.engine == engine for parity in self.parity)
