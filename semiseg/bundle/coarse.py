"""The coarse pass of a model: how it decides which windows the full pass needs, and the proof of what that costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from semiseg.bundle.variant import Gate, Precision, Share

Step = Annotated[int, Field(ge=1, le=4)]
Factor = tuple[Step, Step, Step]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CoarseProof(_Document):
    """Comparison of the masks with the coarse pass and without it, on whole scans, after the model's cleaning.

    Attributes:
        precision: Precision of the graph.
        engine: Name of the engine that ran it.
        scans: Number of scans.
        skipping: Number of these scans on which windows were skipped.
        mean_dice: Mean Dice between the two masks, over the scans on which windows were skipped, and the segments that
            one of the two draws.
        least_dice: Least of these Dice values.
        lost: Number of connected components of the full pass of which nothing was left.
        factor: Windows of the full pass, divided by the windows that were run, those of the coarse pass included.
    """

    precision: Precision
    engine: str
    scans: int
    skipping: int
    mean_dice: Share
    least_dice: Share
    lost: int
    factor: float

    def failure(self, gate: Gate) -> str | None:
        """A clause that says what misses the gate; None where nothing does."""
        if self.lost:
            return f"{self.lost} connected component(s) of the full pass were lost"
        if self.mean_dice < gate.coarse or self.least_dice < gate.coarse_least:
            return (
                f"masks agree with those of the full pass to a mean Dice of {self.mean_dice:.5f} (at least "
                f"{gate.coarse:g}) and a least Dice of {self.least_dice:.5f} (at least {gate.coarse_least:g})"
            )
        return None


class Coarse(_Document):
    """Settings of the coarse pass, learned on training scans.

    The coarse pass runs the same network on windows without overlap. A window of the full pass is run where a segment
    could be within ``margin`` of it; all other windows are skipped, and what they alone would have decided is
    background. It holds for the manifest's own window and overlap.

    Attributes:
        kind: ``sparse_windows`` keeps the network's grid; ``coarse_grid`` takes one that is coarser by
            ``downsampling``.
        downsampling: Voxels along each axis that are averaged to one.
        threshold: Probability of a segment against the background above which a voxel counts.
        margin: Distance in mm, along each axis, to which windows around such a voxel are run.
        expected: Segments that every training scan had. Where the coarse pass finds nothing of one of them, all windows
            are run.
        empty: What follows where the coarse pass finds nothing at all: ``full`` runs all windows, ``background`` none.
        proofs: Proofs, one for each precision in which the coarse pass may be used.
    """

    kind: Literal["sparse_windows", "coarse_grid"]
    downsampling: Factor = (1, 1, 1)
    threshold: Annotated[float, Field(gt=0, lt=1)]
    margin: Annotated[float, Field(ge=0)]
    expected: tuple[str, ...] = ()
    empty: Literal["full", "background"] = "full"
    proofs: tuple[CoarseProof, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Coarse:
        if (self.kind == "sparse_windows") != (self.downsampling == (1, 1, 1)):
            raise ValueError(f"{self.kind} does not go with a downsampling of {list(self.downsampling)}")
        return self

    def proved_in(self, precision: Precision) -> bool:
        """Whether there is a proof in this precision."""
        return any(proof.precision == precision for proof in self.proofs)

    @property
    def description(self) -> str:
        """The settings in words, without a full stop."""
        grid = "x".join(map(str, self.downsampling))
        where = "on the scan's own grid" if self.kind == "sparse_windows" else f"on a grid coarser by {grid}"
        return (
            f"windows without overlap {where}, probability above {self.threshold:g}, margin {self.margin:g} mm along "
            "each axis"
        )


def coarse_lines(coarse: Coarse | None) -> list[str]:
    """Sentences for people: the coarse pass of a model, and its proofs."""
    if coarse is None:
        return ["no coarse pass: every window is run"]
    return [
        f"coarse pass: {coarse.description}",
        *(
            f"coarse pass in {proof.precision} on {proof.engine}: proved on {proof.scans} scans, of which it skipped "
            f"windows of {proof.skipping}; {proof.factor:.1f} times fewer windows, masks agree with those of the full "
            f"pass to a mean Dice of {proof.mean_dice:.5f} and a least Dice of {proof.least_dice:.5f}"
            for proof in coarse.proofs
        ),
    ]
