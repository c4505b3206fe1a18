"""CFR's first stage alone: SAM, fine-tuned on canvases of the labelled scans' slices, segments volumes itself (CFR_FT).

Li et al., "Concatenate, Fine-tuning, Re-training: A SAM-enabled framework for semi-supervised 3D medical image
segmentation", 2024; equation numbers are the paper's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from semiseg.bundle.manifest import PretrainedWeights
from trainer.bezier import apply_random_curves
from trainer.errors import RecipeError
from trainer.losses import dice_pooled, masked_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, share_of_part
from trainer.methods.registry import method_class
from trainer.methods.unsupported_keys import reject_deep_supervision, reject_initial_run
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.mosaic_segmenter import MosaicSegmenter
from trainer.patches import Batch, BatchComposition
from trainer.recipe import Optimiser, Positive, Recipe, Schedule, Section, Share
from trainer.sam import SamSegmenter, SamSettings, build_sam
from trainer.schedules import rate_factor
from trainer.slice_mosaic import SliceMosaic, make_slice_mosaic, mosaic_labels
from trainer.slices import from_slices, to_slices

UNKNOWN = -2  # label of a voxel that nobody outlined


class FineTunedSam(Method):
    """What CFR and its first stage alone share: SAM, canvases, and the loss on them."""

    class Config(Section):
        """The foundation model and what it sees.

        Attributes:
            sam: the foundation model.
            input: all slices of a patch ``concatenate`` on one canvas; ``upsample`` each slice to a canvas of its own;
                or the same with ``small`` canvases, which ``sam.side`` says.
            grid: cells per side of a canvas, with enlarged slices on several canvases (fig. 5b); None shows the slices
                as they are, all on one.
            slices: Number of slices of a patch that are drawn for a step, with a slice per canvas.
            bend: share of the slices whose values go along a random curve.
            shuffle_slices, turn_slices: destroy the order of the slices, or turn and mirror each (fig. 4).
            turn_canvas: turn and mirror whole canvases.
            sam_optimiser, sam_schedule: Optimiser of the foundation model and schedule of its learning rate.
            volumes: labelled patches per step of the foundation model; each is one canvas when concatenated.
        """

        sam: SamSettings = SamSettings()
        input: Literal["concatenate", "upsample", "small"] = "concatenate"
        grid: Positive | None = None
        slices: Positive = 4
        bend: Share = 0.5
        shuffle_slices: bool = False
        turn_slices: bool = False
        turn_canvas: bool = False
        sam_optimiser: Optimiser = Optimiser(rate=1e-3, weight_decay=0.1)
        sam_schedule: Schedule = Schedule(kind="poly")
        volumes: Positive = 2

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`; the slices have to fit."""
        super().__init__(recipe, task)
        switches = self.config
        if switches.input != "concatenate" and switches.grid is not None:
            raise RecipeError("methods.cfr.grid says how slices are concatenated; leave it out.")
        if switches.input == "small" and switches.sam.side is None:
            raise RecipeError("methods.cfr.sam.side: say how many pixels a side `small` images have.")
        self.canvas: SliceMosaic = make_slice_mosaic(
            recipe.size(), task.slice_axis, switches.sam.image_side(), self.cells
        )

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; the foundation model's batches are shared evenly too."""
        super().check_parts(processes)
        parts = processes * self.recipe.accumulate
        if self.config.volumes % parts:
            raise RecipeError(
                f"methods.cfr.volumes: {self.config.volumes} patches cannot be shared evenly by {parts} part(s); "
                f"make it a multiple of {parts}."
            )

    def optimiser(self, network: str) -> Optimiser:
        """The foundation model's own."""
        own: Optimiser = self.config.sam_optimiser
        return own

    @property
    def cells(self) -> int | None:
        """Cells per side of a canvas; None for as many as hold all slices."""
        grid: int | None = self.config.grid
        return grid if self.config.input == "concatenate" else 1

    def build_sam(self) -> SamSegmenter:
        """The foundation model."""
        return build_sam(self.config.sam, self.task.inputs, self.targets.channels)

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """The foundation model's weights."""
        sam: SamSettings = self.config.sam
        return sam.pretrained()

    def canvas_loss(self, sam: nn.Module, batch: Batch) -> Tensor:
        """(Dice + CE) / 2 on canvases; CE leaves out where there is no voxel, Dice wants no segment there.

        Voxels that nobody outlined count in neither.
        """
        images, labels, there = self.canvases(batch)
        logits = sam(images)
        known = labels != UNKNOWN
        target = self.targets.encode(labels * known) * (there & known)[:, None]
        crossed = masked_mean(self.targets.cross_entropy(logits, target), there & known)
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
        if self.config.turn_slices:
            slices = _each_turned(slices)
        if self.config.shuffle_slices:
            stacks = slices.unflatten(0, (count, -1))
            order = torch.randperm(stacks.shape[1]).to(slices.device)
            slices = stacks[:, order].flatten(0, 1)
        bent = apply_random_curves(slices[:, :-1], self.config.bend)
        images = self.canvas.concatenate(from_slices(bent, count, axis))
        labels, there = mosaic_labels(self.canvas, from_slices(slices[:, -1:], count, axis)[:, 0].round().long())
        if self.config.input != "concatenate":
            drawn = torch.randperm(len(images))[: self.config.slices * count].to(images.device)
            images, labels, there = images[drawn], labels[drawn], there[drawn]
        if self.config.turn_canvas:
            joined = _each_turned(torch.cat([images, labels[:, None], there[:, None]], dim=1))
            images, labels, there = joined[:, :-2], joined[:, -2].long(), joined[:, -1].bool()
        return images, labels, there

    def as_volume_network(self, sam: nn.Module) -> MosaicSegmenter:
        """The foundation model on volumes (N, C, X, Y, Z)."""
        assert isinstance(sam, SamSegmenter)
        return MosaicSegmenter(sam, self.canvas)


class CFRFT(FineTunedSam):
    """L_ft = (Dice + CE) / 2 of the foundation model on canvases (Eq. 5); it is the network that is kept."""

    name = "cfr_ft"

    class Config(Section):
        """The foundation model and its settings are those of ``methods.cfr``: ``sam``, ``sam_optimiser``,
        ``sam_schedule``, ``volumes``, and what canvases look like. The recipe's ``updates`` holds; ``student`` is not
        used.
        """

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`FineTunedSam`; what only a 3D student has is refused."""
        super().__init__(recipe, task)
        reject_deep_supervision(self, "trains SAM, which has no levels of a decoder")
        reject_initial_run(self, "methods.cfr.sam.weights")

    @classmethod
    def read_config(cls, recipe: Recipe) -> Section:
        """Those of ``methods.cfr``; ``methods.cfr_ft`` has none of its own."""
        super().read_config(recipe)
        return method_class("cfr").read_config(recipe)

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """SAM on volumes."""
        return (parse_network_config({"kind": "canvas"}),)  # it is only asked which patches suit it

    def check_parts(self, processes: int) -> None:
        """See :meth:`FineTunedSam.check_parts`."""
        super().check_parts(processes)
        if self.guided:
            self.require_in_each_part(self.composition(None), processes, labelled=1, unlabelled=0)

    def build(self) -> Networks:
        """The foundation model on volumes."""
        return {"student": self.as_volume_network(self.build_sam())}

    def step_plan(self, step: int) -> StepPlan:
        """Every step trains on labelled patches, on half a batch of them when a guide labels the others."""
        composition = self.composition(None) if self.guided else BatchComposition(self.config.volumes, 0)
        factor = rate_factor(self.config.sam_schedule, step, self.recipe.updates)
        return StepPlan("fine-tune", {"student": self.optimiser("student").rate * factor}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Eq. 5."""
        sam = networks["student"]
        assert isinstance(sam, MosaicSegmenter)
        n = batch.labelled
        known = replace(batch, images=batch.images[:n], labels=batch.labels[:n], weights=batch.label_weights)
        total = share_of_part(n, step_plan.composition.labelled, batch, step_plan) * self.canvas_loss(sam.sam, known)
        return {"total": total, "sam": total.detach()}

    def exported_config(self) -> AnyNetworkConfig:
        """See :meth:`Method.exported_config`; without the weights that it began with, which the run's own replace."""
        sam: SamSettings = self.config.sam
        if sam.weights is not None:
            sam = sam.without_weights(self.build_sam().network)
        section = {"kind": "canvas", "sam": sam.model_dump(mode="json"), "grid": self.cells}
        return parse_network_config({**section, "axis": self.task.slice_axis})


def _each_turned(images: Tensor) -> Tensor:
    """Each image (C, H, W) turned by a random number of right angles (of half turns, if not square) and mirrored."""
    step = 1 if images.shape[-1] == images.shape[-2] else 2
    turns = torch.randint(0, 4 // step, (len(images),)).mul(step).tolist()
    mirrored = torch.randint(0, 2, (len(images),)).tolist()
    pairs = zip(images, turns, mirrored, strict=True)
    return torch.stack([i.rot90(t, (1, 2)).flip(1) if m else i.rot90(t, (1, 2)) for i, t, m in pairs])
