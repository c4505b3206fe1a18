"""CFR's first stage alone: SAM, fine-tuned on mosaics of the labelled scans' slices, segments volumes itself (CFR_FT).

Li et al., "Concatenate, Fine-tuning, Re-training: A SAM-enabled framework for semi-supervised 3D medical image
segmentation", 2024; equation numbers are the paper's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

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

UNKNOWN = -2  # label of a voxel without annotation


class FineTunedSam(Method):
    """Base class of CFR and of its first stage alone: SAM, the mosaics of slices, and the loss on them.

    A mosaic of slices is called a canvas in the settings.
    """

    former_members: ClassVar[dict[str, str]] = {"on_volumes": "as_volume_network"}

    class Config(Section):
        """Settings of the foundation model and of its input.

        Attributes:
            sam: The foundation model.
            input: Layout of the slices: ``concatenate`` shows all slices of a patch on one canvas; ``upsample``
                enlarges each slice to a canvas of its own; ``small`` does the same with canvases of ``sam.side`` pixels
                per side.
            grid: Number of cells per side of a canvas, with enlarged slices on several canvases (fig. 5b); with None,
                all slices of a patch are on one canvas at their own size.
            slices: Number of slices of a patch that are drawn for a step, if each has its own canvas.
            bend: Share of the slices whose intensities are mapped by a random curve.
            shuffle_slices, turn_slices: If True, the order of the slices is random, or each slice is randomly rotated
                and mirrored (fig. 4).
            turn_canvas: If True, whole canvases are randomly rotated and mirrored.
            sam_optimiser, sam_schedule: Optimiser of the foundation model and schedule of its learning rate.
            volumes: Number of labelled patches per step of the foundation model; each is one canvas when concatenated.
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
        """See :class:`Method`.

        Raises:
            RecipeError: The slices do not fit on a canvas, or settings contradict each other.
        """
        super().__init__(recipe, task)
        switches = self.config
        if switches.input != "concatenate" and switches.grid is not None:
            raise RecipeError("methods.cfr.grid applies to `input: concatenate` only; leave it out.")
        if switches.input == "small" and switches.sam.side is None:
            raise RecipeError("methods.cfr.sam.side: give the number of pixels per side of `small` images.")
        self.canvas: SliceMosaic = make_slice_mosaic(
            recipe.size(), task.slice_axis, switches.sam.image_side(), self.cells
        )

    def check_parts(self, processes: int) -> None:
        """See :meth:`Method.check_parts`; the foundation model's batches are divided evenly, too."""
        super().check_parts(processes)
        parts = processes * self.recipe.accumulate
        if self.config.volumes % parts:
            raise RecipeError(
                f"methods.cfr.volumes: {self.config.volumes} patches cannot be shared evenly by {parts} part(s); "
                f"make it a multiple of {parts}."
            )

    def optimiser(self, network: str) -> Optimiser:
        """Return the settings of the foundation model's optimiser."""
        own: Optimiser = self.config.sam_optimiser
        return own

    @property
    def cells(self) -> int | None:
        """Number of cells per side of a canvas; None for as many as hold all slices."""
        grid: int | None = self.config.grid
        return grid if self.config.input == "concatenate" else 1

    def build_sam(self) -> SamSegmenter:
        """Build the foundation model."""
        return build_sam(self.config.sam, self.task.inputs, self.targets.channels)

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the foundation model's pretrained weights."""
        sam: SamSettings = self.config.sam
        return sam.pretrained()

    def canvas_loss(self, sam: nn.Module, batch: Batch) -> Tensor:
        """Return (Dice + CE) / 2 on canvases.

        Pixels outside all slices do not count in CE; in Dice their target is zero in every channel. Voxels without
        annotation count in neither.
        """
        images, labels, there = self.canvases(batch)
        logits = sam(images)
        known = labels != UNKNOWN
        target = self.targets.encode(labels * known) * (there & known)[:, None]
        crossed = masked_mean(self.targets.cross_entropy(logits, target), there & known)
        return 0.5 * (crossed + dice_pooled(self.targets.probabilities(logits) * known[:, None], target))

    def canvases(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Lay the slices of the batch's patches out on canvases.

        Returns:
            Images (M, C, side, side); labels (M, side, side), :data:`UNKNOWN` at voxels without annotation; and a mask
            (M, side, side) of the pixels that show a voxel.
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
        """Return the foundation model as a network for volumes (N, C, X, Y, Z)."""
        assert isinstance(sam, SamSegmenter)
        return MosaicSegmenter(sam, self.canvas)


class CFRFT(FineTunedSam):
    """L_ft = (Dice + CE) / 2 of the foundation model on mosaics (Eq. 5); it is the network that is kept."""

    name = "cfr_ft"

    class Config(Section):
        """No settings of its own: those of ``methods.cfr`` apply.

        They are ``sam``, ``sam_optimiser``, ``sam_schedule``, ``volumes`` and the settings of the canvases. The
        recipe's ``updates`` applies; ``student`` is not used.
        """

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`FineTunedSam`.

        Raises:
            RecipeError: The recipe has keys that apply to 3D students only.
        """
        super().__init__(recipe, task)
        reject_deep_supervision(self, "trains SAM, which has no levels of a decoder")
        reject_initial_run(self, "methods.cfr.sam.weights")

    @classmethod
    def read_config(cls, recipe: Recipe) -> Section:
        """Validate and return the settings of ``methods.cfr``; ``methods.cfr_ft`` has none of its own."""
        super().read_config(recipe)
        return method_class("cfr").read_config(recipe)

    @classmethod
    def students(cls, recipe: Recipe) -> tuple[AnyNetworkConfig, ...]:
        """Return the configuration of SAM on volumes."""
        return (parse_network_config({"kind": "slice_mosaic"}),)  # used only to find patch sizes that suit it

    def check_parts(self, processes: int) -> None:
        """See :meth:`FineTunedSam.check_parts`."""
        super().check_parts(processes)
        if self.guided:
            self.require_in_each_part(self.composition(None), processes, labelled=1, unlabelled=0)

    def build(self) -> Networks:
        """Build the foundation model as a network for volumes."""
        return {"student": self.as_volume_network(self.build_sam())}

    def step_plan(self, step: int) -> StepPlan:
        """Train on labelled patches in every step.

        If an earlier stage guides this one, half of the recipe's batch is unlabelled patches.
        """
        composition = self.composition(None) if self.guided else BatchComposition(self.config.volumes, 0)
        factor = rate_factor(self.config.sam_schedule, step, self.recipe.updates)
        return StepPlan("fine-tune", {"student": self.optimiser("student").rate * factor}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return Eq. 5."""
        sam = networks["student"]
        assert isinstance(sam, MosaicSegmenter)
        n = batch.labelled
        known = replace(batch, images=batch.images[:n], labels=batch.labels[:n], weights=batch.label_weights)
        total = share_of_part(n, step_plan.composition.labelled, batch, step_plan) * self.canvas_loss(sam.sam, known)
        return {"total": total, "sam": total.detach()}

    def exported_config(self) -> AnyNetworkConfig:
        """See :meth:`Method.exported_config`; it names no pretrained weights, which the run's own weights replace."""
        sam: SamSettings = self.config.sam
        if sam.weights is not None:
            sam = sam.without_weights(self.build_sam().network)
        section = {"kind": "slice_mosaic", "sam": sam.model_dump(mode="json"), "grid": self.cells}
        return parse_network_config({**section, "axis": self.task.slice_axis})


def _each_turned(images: Tensor) -> Tensor:
    """Rotate each image (C, H, W) by a random multiple of 90 degrees (180 if it is not square) and mirror it or not."""
    step = 1 if images.shape[-1] == images.shape[-2] else 2
    turns = torch.randint(0, 4 // step, (len(images),)).mul(step).tolist()
    mirrored = torch.randint(0, 2, (len(images),)).tolist()
    pairs = zip(images, turns, mirrored, strict=True)
    return torch.stack([i.rot90(t, (1, 2)).flip(1) if m else i.rot90(t, (1, 2)) for i, t, m in pairs])
