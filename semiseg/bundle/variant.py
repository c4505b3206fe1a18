"""Variants of a model: graphs of the same network in several precisions, with measurements of their accuracy."""

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
    """Return the precision of this name; None for None.

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
    """Requirements that a graph must meet on windows of real scans before it is written.

    Attributes:
        difference: Largest allowed difference of a logit from the trained network's, for fp32; round-off in a UNet is
            below 1e-3. In other precisions the logits may differ, but the masks may not.
        fp32: Least Dice of every segment between the fp32 graph's mask and the trained network's.
        fp16: The same for the fp16 graph.
        bf16: The same for the bf16 graph.
        int8: The same for the int8 graph.
        coarse_mean_dice: Least mean Dice between the masks with and without the coarse pass, over scans and segments.
        coarse_least_dice: Least of these Dice values. In addition, no connected component may be lost.
    """

    difference: Annotated[float, Field(gt=0)] = 1e-2
    fp32: Share = 0.999
    fp16: Share = 0.995
    bf16: Share = 0.995
    int8: Share = 0.995
    coarse_mean_dice: Share = 0.999
    coarse_least_dice: Share = 0.995

    def dice(self, precision: Precision) -> float:
        """Return the least Dice for a graph of this precision."""
        return float(getattr(self, precision))


class Parity(_Document):
    """Agreement of a graph on one engine with the trained network, on windows of one size from real scans.

    Attributes:
        engine: Engine that ran the graph.
        window: Size of the windows in voxels.
        windows: Number of windows.
        largest_difference: Largest difference of a logit.
        dice: Dice between the two masks of each segment that at least one of them contains.
    """

    engine: str
    window: Window
    windows: int
    largest_difference: float
    dice: dict[str, float]

    @property
    def least_dice(self) -> float:
        """Dice of the worst segment; 1 if neither mask contains a segment."""
        return min(self.dice.values(), default=1.0)


class Variant(_Document):
    """One graph of the bundle.

    Attributes:
        precision: Precision of the graph's weights and activations.
        file: Name of the file in the bundle.
        parity: Measurements of the agreement with the trained network, at least one for each allowed window.
    """

    precision: Precision
    file: str
    parity: tuple[Parity, ...] = ()

    def verified_on(self, engine: str) -> bool:
        """Return True if the graph met the gate's requirements on this engine."""
        return any(parity.engine == engine for parity in self.parity)
