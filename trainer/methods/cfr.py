"""CFR: a foundation model learns the labelled scans as large images of their slices, then labels the others for a small
3D network.

Li et al., "Concatenate, Fine-tuning, Re-training: A SAM-enabled framework for semi-supervised 3D medical image
segmentation", 2024. The re-training is a method of its own, its host; equation numbers are the paper's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from semiseg.bundle.manifest import PretrainedWeights
from trainer.bezier import bend_slices
from trainer.canvas import Canvas, label_canvas, lay_out
from trainer.errors import RecipeError
from trainer.losses import dice_pooled, mean_where
from trainer.methods.method import Networks, Task, Turn
from trainer.methods.pretrain import PretrainThenTrain
from trainer.methods.registry import MethodName
from trainer.patches import Batch, Mixture
from trainer.recipe import Optimiser, Positive, Recipe, Schedule, Section, Share
from trainer.sam import Sam, SamSegmenter, build_sam
from trainer.schedules import ramp_up, rate_factor
from trainer.slices import from_slices, to_slices

UNKNOWN = -2  # label of a voxel that nobody outlined
SAM = "sam"  # the foundation model's name among the networks


class CFR(PretrainThenTrain):
    """L_ft = (Dice + CE) / 2 of the foundation model on canvases (Eq. 5); then L_host + lambda L_pl (Eq. 6, 7)."""

    name = "cfr"
    switch = "host"
    guides = True

    class Switches(Section):
        """The paper's ablations. The host's own switches stand under its name, as for the host alone.

        Attributes:
            host: the method that the 3D network is re-trained with.
            sam: the foundation model.
            sam_updates: its optimisation steps, before the first of the 3D network.
            sam_optimiser, sam_schedule: how it learns.
            volumes: labelled patches per step of the foundation model; each is one canvas when concatenated.
            input: all slices of a patch ``concatenate`` on one canvas; ``upsample`` each slice to a canvas of its own;
                or the same with ``small`` canvases, which ``sam.side`` says.
            grid: cells per side of a canvas, with enlarged slices on several canvases (fig. 5b); None shows the slices
                as they are, all on one.
            slices: with a slice per canvas: how many of a patch are drawn for a step.
            bend: share of the slices whose values go along a random curve.
            shuffle_slices, turn_slices: destroy the order of the slices, or turn and mirror each (fig. 4).
            turn_canvas: turn and mirror whole canvases.
            pseudo_labels: ``cached`` labels whole scans once, with overlapping windows; ``on_the_fly`` labels every
                patch anew, as released, at the cost of the foundation model in every step.
            pseudo_weight: lambda of L_pl: 1 from the start, as released.
            pseudo_schedule: that weight stays ``constant``, follows the ``ramp`` of consistency terms (Eq. 6 has one
                weight for both: say the host's), or goes ``falling`` as 1 - t/T.
        """

        host: MethodName = "mean_teacher"
        sam: Sam = Sam()
        sam_updates: Positive = 6000
        sam_optimiser: Optimiser = Optimiser(rate=1e-3, weight_decay=0.1)
        sam_schedule: Schedule = Schedule(kind="poly")
        volumes: Positive = 2
        input: Literal["concatenate", "upsample", "small"] = "concatenate"
        grid: Positive | None = None
        slices: Positive = 4
        bend: Share = 0.5
        shuffle_slices: bool = False
        turn_slices: bool = False
        turn_canvas: bool = False
        pseudo_labels: Literal["cached", "on_the_fly"] = "cached"
        pseudo_weight: Annotated[float, Field(ge=0)] = 1.0
        pseudo_schedule: Literal["constant", "ramp", "falling"] = "constant"

    def __init__(self, recipe: Recipe, task: Task) -> None:
        """See :class:`PretrainThenTrain`; the slices have to fit."""
        super().__init__(recipe, task)
        switches = self.switches
        if not task.unlabelled:
            raise RecipeError("cfr labels unlabelled scans, and the split has none; train with `supervised`.")
        if switches.input != "concatenate" and switches.grid is not None:
            raise RecipeError("methods.cfr.grid says how slices are concatenated; leave it out.")
        if switches.input == "small" and switches.sam.side is None:
            raise RecipeError("methods.cfr.sam.side: say how many pixels a side `small` images have.")
        grid = switches.grid if switches.input == "concatenate" else 1
        self.canvas: Canvas = lay_out(recipe.size(), task.slice_axis, switches.sam.image_side(), grid)

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; the foundation model's batches are shared evenly too."""
        super().check_parts(processes)
        parts = processes * self.recipe.accumulate
        if self.switches.volumes % parts:
            raise RecipeError(
                f"methods.cfr.volumes: {self.switches.volumes} patches cannot be shared evenly by {parts} part(s); "
                f"make it a multiple of {parts}."
            )

    def build(self) -> Networks:
        """The foundation model."""
        return {SAM: build_sam(self.switches.sam, self.task.inputs, self.targets.channels)}

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """The foundation model's weights, which taught the student."""
        sam: Sam = self.switches.sam
        return sam.pretrained()

    def optimiser(self, network: str) -> Optimiser:
        """The foundation model's own."""
        own: Optimiser = self.switches.sam_optimiser
        return own

    # --- fine-tuning ----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """The foundation model's updates."""
        return int(self.switches.sam_updates)

    def turn(self, step: int) -> Turn:
        """Fine-tuning on labelled patches."""
        rate = self.switches.sam_optimiser.rate * rate_factor(self.switches.sam_schedule, step, self.steps)
        return Turn("fine-tune", {SAM: rate}, Mixture(self.switches.volumes, 0), 0)

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """Eq. 5."""
        total = self.canvas_loss(networks[SAM], batch)
        return {"total": total, "sam": total.detach()}

    # --- labels for the stages that follow ------------------------------------------------------------------------

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """When the foundation model has learned, if it labels whole scans."""
        return step == self.steps and self.switches.pseudo_labels == "cached"

    def labeller(self, networks: Networks, step: int) -> nn.Module:
        """The foundation model."""
        return _OnCanvas(self, networks[SAM])

    @torch.no_grad()
    def guiding_labels(self, networks: Networks, batch: Batch) -> Tensor:
        """The foundation model's labels of the unlabelled patches (Algorithm 1, line 16)."""
        if self.switches.pseudo_labels == "cached" or len(batch) == batch.labelled:
            return super().guiding_labels(networks, batch)
        found = self.targets.probabilities(self.on_canvas(networks[SAM], batch.images[batch.labelled :]))
        return self.targets.decide(found)

    def guidance_weight(self, update: int) -> float:
        """lambda of L_pl (Eq. 6, 7) at the student's ``update``; it is added at every update (Algorithm 1, line 18)."""
        total, weight = self.recipe.updates, self.switches.pseudo_weight
        factors = {"constant": 1.0, "ramp": ramp_up(update, total), "falling": 1.0 - update / total}
        return float(weight * factors[self.switches.pseudo_schedule])

    # --- canvases -------------------------------------------------------------------------------------------------

    def canvas_loss(self, sam: nn.Module, batch: Batch) -> Tensor:
        """(Dice + CE) / 2 on canvases; CE leaves out where there is no voxel, Dice wants no segment there.

        Voxels that nobody outlined count in neither.
        """
        images, labels, there = self.canvases(batch)
        logits = sam(images)
        known = labels != UNKNOWN
        target = self.targets.encode(labels * known) * (there & known)[:, None]
        crossed = mean_where(self.targets.cross_entropy(logits, target), there & known)
        return 0.5 * (crossed + dice_pooled(self.targets.probabilities(logits) * known[:, None], target))

    def canvases(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images (M, C, side, side), labels (M, side, side), and where there are voxels, of the batch's patches.

        The label of a voxel that nobody outlined is :data:`UNKNOWN`.
        """
        axis, count = self.task.slice_axis, len(batch)
        labels = batch.labels
        if batch.weights is not None:
            labels = torch.where(batch.weights > 0, labels, torch.full_like(labels, UNKNOWN))
        both = torch.cat([batch.images, labels[:, None].to(batch.images.dtype)], dim=1)
        slices = to_slices(both, axis)
        if self.switches.turn_slices:
            slices = _each_turned(slices)
        if self.switches.shuffle_slices:
            stacks = slices.unflatten(0, (count, -1))
            order = torch.randperm(stacks.shape[1]).to(slices.device)
            slices = stacks[:, order].flatten(0, 1)
        bent = bend_slices(slices[:, :-1], self.switches.bend)
        images = self.canvas.concatenate(from_slices(bent, count, axis))
        labels, there = label_canvas(self.canvas, from_slices(slices[:, -1:], count, axis)[:, 0].round().long())
        if self.switches.input != "concatenate":
            drawn = torch.randperm(len(images))[: self.switches.slices * count].to(images.device)
            images, labels, there = images[drawn], labels[drawn], there[drawn]
        if self.switches.turn_canvas:
            joined = _each_turned(torch.cat([images, labels[:, None], there[:, None]], dim=1))
            images, labels, there = joined[:, :-2], joined[:, -2].long(), joined[:, -1].bool()
        return images, labels, there

    def on_canvas(self, sam: nn.Module, volumes: Tensor) -> Tensor:
        """The foundation model's logits of volumes (N, C, X, Y, Z): F_C^-1(F_FT(F_C(X)))."""
        assert isinstance(sam, SamSegmenter)
        return self.canvas.split(sam.predict(self.canvas.concatenate(volumes)))

    def voters(self, networks: Networks) -> Networks:
        """The foundation model, beside those of the method that follows."""
        return {SAM: _OnCanvas(self, networks[SAM])}


class _OnCanvas(nn.Module):
    """The foundation model on volumes."""

    def __init__(self, method: CFR, sam: nn.Module) -> None:
        super().__init__()
        self._method, self.sam = method, sam

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> logits."""
        return self._method.on_canvas(self.sam, x)


def _each_turned(images: Tensor) -> Tensor:
    """Each image (C, H, W) turned by a random number of right angles (of half turns, if not square) and mirrored."""
    step = 1 if images.shape[-1] == images.shape[-2] else 2
    turns = torch.randint(0, 4 // step, (len(images),)).mul(step).tolist()
    mirrored = torch.randint(0, 2, (len(images),)).tolist()
    pairs = zip(images, turns, mirrored, strict=True)
    return torch.stack([i.rot90(t, (1, 2)).flip(1) if m else i.rot90(t, (1, 2)) for i, t, m in pairs])
