"""Settings of a model's coarse pass, which selects the windows of the full pass, and the proof of its accuracy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from semiseg.bundle.variant import Gate, Precision, Share

_Step = Annotated[int, Field(ge=1, le=4)]
Downsampling = tuple[_Step, _Step, _Step]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CoarsePassProof(_Document):
    """Comparison of the masks with and without the coarse pass, on whole scans and after the model's postprocessing.

    Attributes:
        precision: Precision of the graph.
        engine: Engine that ran the graph.
        scans: Number of scans.
        scans_with_skips: Number of scans on which windows were skipped. On the other scans the masks are equal, because
            all windows were run.
        mean_dice: Mean Dice between the two masks, over the scans on which windows were skipped and over the segments
            that at least one of the two masks contains.
        least_dice: Least of these Dice values.
        lost_components: Number of connected components of the full pass of which no voxel remained.
        window_ratio: Number of windows of the full passes, divided by the number of windows that were run, including
            those of the coarse passes.
    """

    precision: Precision
    engine: str
    scans: int
    scans_with_skips: int
    mean_dice: Share
    least_dice: Share
    lost_components: int
    window_ratio: float

    def gate_failure(self, gate: Gate) -> str | None:
        """Return a clause that says by how much the coarse pass fails the gate; None if it passes."""
        if self.lost_components:
            return f"{self.lost_components} connected component(s) of the full pass were lost"
        if self.mean_dice < gate.coarse_mean_dice or self.least_dice < gate.coarse_least_dice:
            return (
                f"the masks agree with those of the full pass to a mean Dice of {self.mean_dice:.5f} (at least "
                f"{gate.coarse_mean_dice:g}) and a least Dice of {self.least_dice:.5f} (at least "
                f"{gate.coarse_least_dice:g})"
            )
        return None


class CoarsePassSettings(_Document):
    """Settings of the coarse pass, which the export determines on training scans.

    The coarse pass runs the same network on windows without overlap. The full pass then runs only the windows that lie
    within ``margin`` of a voxel at which the coarse pass found a segment. The result of the skipped windows is
    background. The settings apply to the manifest's own window and overlap.

    Attributes:
        kind: ``sparse_windows`` uses the grid of the full pass, ``coarse_grid`` a grid with larger voxels.
        downsampling: Number of voxels along each axis that are averaged to one voxel of the coarse grid.
        threshold: Probability of a segment against the background above which the coarse pass counts a voxel as found.
        margin: Distance in mm along each axis from such a voxel within which windows are run.
        expected: Names of the segments that the model found in every scan on which the settings were learned. If the
            coarse pass does not find one of them, all windows are run.
        proofs: Proof for each precision in which the coarse pass may be used.
    """

    kind: Literal["sparse_windows", "coarse_grid"]
    downsampling: Downsampling = (1, 1, 1)
    threshold: Annotated[float, Field(gt=0, lt=1)]
    margin: Annotated[float, Field(ge=0)]
    expected: tuple[str, ...] = ()
    proofs: tuple[CoarsePassProof, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> CoarsePassSettings:
        if (self.kind == "sparse_windows") != (self.downsampling == (1, 1, 1)):
            raise ValueError(f"the kind {self.kind} is not possible with a downsampling of {list(self.downsampling)}")
        return self

    def proved_in(self, precision: Precision) -> bool:
        """Return True if there is a proof for this precision."""
        return any(proof.precision == precision for proof in self.proofs)

    @property
    def description(self) -> str:
        """The settings in words, without a full stop."""
        factors = "x".join(map(str, self.downsampling))
        expected = ", ".join(self.expected) or "none"
        grid = "the grid of the full pass" if self.kind == "sparse_windows" else f"a grid downsampled by {factors}"
        return (
            f"windows without overlap on {grid}, threshold {self.threshold:g} on the probability, margin "
            f"{self.margin:g} mm along each axis, segments expected in every scan: {expected}"
        )


def describe_coarse_pass(settings: CoarsePassSettings | None) -> list[str]:
    """Return lines that describe the coarse pass of a model, and its proofs."""
    if settings is None:
        return ["no coarse pass: all windows of every scan are run"]
    return [
        f"coarse pass: {settings.description}",
        *(
            f"coarse pass, {proof.precision}, on {proof.engine}: proved on {proof.scans} scans, "
            f"{proof.scans_with_skips} of them with skipped windows; {proof.window_ratio:.1f} times fewer windows; "
            f"masks agree with those of the full pass to a mean Dice of {proof.mean_dice:.5f} and a least Dice of "
            f"{proof.least_dice:.5f}; {proof.lost_components} connected components lost"
            for proof in settings.proofs
        ),
    ]
