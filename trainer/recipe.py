"""Recipes: the settings that determine what a run computes; :mod:`trainer.recipe_files` reads them from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semiseg.bundle.manifest import Overlap
from semiseg.bundle.postprocessing import Postprocessing
from semiseg.bundle.preprocessing import Intensity, Preprocessing
from semiseg.bundle.variant import Gate
from semiseg.errors import validation_message
from semiseg.volumes.segmentation import ConceptCode
from semiseg.volumes.series_rules import SeriesRule
from trainer.errors import RecipeError
from trainer.memory_format import MemoryFormat

Positive = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=4096)]  # voxels; the manifest's limit
ByteValue = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base class of the sections of a recipe: unknown keys are refused, and instances are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Preparation(Section):
    """Preprocessing of scans into the network's input.

    Values that are left open are decided from the dataset and recorded in the run.

    Attributes:
        orientation: Directions of the axes of the network's grid: one letter per axis (R or L, A or P, S or I) for the
            side of the body towards which it increases.
        spacing: Voxel spacing in mm per axis; ``own`` keeps the spacing of each scan, ``median`` takes the median over
            the training scans.
        intensity: One entry for all channels, or one per channel.
        slice_axis: Axis along which 2D teachers slice volumes. ``auto`` takes the axis of largest spacing in most
            training scans; on a tie, the last one.
        crop: ``nonzero`` removes the border region in which all channels are zero.
        padding: Values around a scan that is smaller than the patch: its border values repeated, or zeros.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | Literal["own", "median"] = "own"
    intensity: tuple[Intensity, ...] = (Intensity(),)
    crop: Literal["none", "nonzero"] = "none"
    slice_axis: Literal["auto", 0, 1, 2] = "auto"
    padding: Literal["edge", "zero"] = "edge"

    @model_validator(mode="after")
    def _possible(self) -> Preparation:
        """Refuse values that :class:`Preprocessing` would refuse only after every scan has been read."""
        spacing = None if isinstance(self.spacing, str) else self.spacing
        try:
            Preprocessing(orientation=self.orientation, spacing=spacing, intensity=self.intensity)
        except ValidationError as error:
            raise ValueError(validation_message(error)) from None
        return self


class SegmentNotes(Section):
    """Properties of a segment that a dataset folder does not state: its DICOM codes and its colour.

    Attributes:
        colour: Red, green and blue in pictures and viewers; by default, semiseg assigns a different colour to each
            segment.
        painted: Value of a region in a single label map of all regions; each region overwrites those before it.
        category: Code of the segment's category, as in a DICOM SEG (PS3.3 C.8.20.2); by default, tissue.
        type: Code of the segment's type, as in a DICOM SEG (PS3.3 C.8.20.2); by default, a code of a private scheme
            whose meaning is the segment's name.
    """

    colour: tuple[ByteValue, ByteValue, ByteValue] | None = None
    painted: Annotated[int, Field(ge=1, le=255)] | None = None
    category: ConceptCode | None = None
    type: ConceptCode | None = None


RegionName = Annotated[str, Field(min_length=1, max_length=64)]


class Augmentation(Section):
    """Random augmentation of training patches, drawn independently for each patch.

    Attributes:
        affine: Probability of the spatial change (zoom and rotation, in one interpolation).
        scale: Limits of the zoom factor, which is the same for all axes (0.9 to 1.1 in M&N).
        rotate: Largest rotation angle in degrees about the slice axis, which is within the plane of the slices.
        rotate_out_of_plane: Largest rotation angle in degrees about the two other axes; with 0, rotations stay within
            the plane of the slices.
        quarter_turns: Probability of a rotation by a random multiple of 90 degrees in the plane of the slices (180
            degrees if the patch is not square in this plane).
        flip: Axes along which the patch is mirrored, each with probability ``flip_probability``.
        flip_probability: Probability of mirroring, for each of the axes in ``flip``.
        gamma: Limits of the exponent of a gamma change with probability ``gamma_probability``. The patch is scaled to
            0..1 for it and back.
        gamma_probability: Probability of a gamma change.
        gamma_inverted: Share of the gamma changes that are applied to the inverted patch, so that they act on bright
            values as they otherwise act on dark ones.
        elastic: Largest displacement in mm of a smooth deformation, with probability ``elastic_probability``.
        elastic_probability: Probability of a deformation.
        elastic_grid: Distance in mm between the control points of the deformation.
        blur: Limits of the standard deviation, in voxels, of a Gaussian blur, with probability ``blur_probability``.
        blur_probability: Probability of a blur.
        low_resolution: Limits of the share of voxels along each axis to which a patch is reduced before it is enlarged
            again, with probability ``low_resolution_probability``.
        low_resolution_probability: Probability of a reduced resolution.
        brightness: Largest additive shift in units of the normalised image, with probability ``intensity_probability``.
        contrast: Largest relative change of the values, with probability ``intensity_probability``.
        noise: Largest standard deviation of Gaussian noise in units of the normalised image, with probability
            ``intensity_probability``.
        intensity_probability: Probability of each of brightness, contrast and noise.
    """

    affine: Share = 1.0
    scale: tuple[float, float] = (0.9, 1.1)
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    rotate_out_of_plane: Annotated[float, Field(ge=0, le=180)] = 0.0
    quarter_turns: Share = 0.0
    flip: tuple[Literal[0, 1, 2], ...] = ()
    flip_probability: Share = 0.5
    gamma: tuple[float, float] = (0.8, 1.2)
    gamma_probability: Share = 0.1
    gamma_inverted: Share = 0.0
    elastic: Annotated[float, Field(ge=0)] = 0.0
    elastic_probability: Share = 0.3
    elastic_grid: Annotated[float, Field(gt=0)] = 20.0
    blur: tuple[float, float] = (0.5, 1.0)
    blur_probability: Share = 0.0
    low_resolution: tuple[float, float] = (0.5, 1.0)
    low_resolution_probability: Share = 0.0
    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0
    intensity_probability: Share = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        for name in ("scale", "gamma", "blur", "low_resolution"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"`{name}` takes two positive limits, the smaller first, got {[low, high]}")
        if self.low_resolution[1] > 1:
            raise ValueError(f"`low_resolution` takes shares of the voxels, at most 1, got {list(self.low_resolution)}")
        return self


class Optimiser(Section):
    """Optimiser of a network.

    Attributes:
        kind: AdamW, or stochastic gradient descent with momentum.
        rate: Learning rate that the schedule multiplies by its factor.
        weight_decay: Weight decay: decoupled decay for AdamW, L2 penalty for SGD.
        momentum: Momentum of SGD.
        clip_norm: Largest norm of the gradient; longer gradients are scaled down to it. By default, gradients are not
            clipped.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class Schedule(Section):
    """The learning rate over a run, as a factor of the optimiser's rate.

    Attributes:
        kind: ``poly`` decays as (1 - t/T)^0.9, ``step`` divides the rate by ten every ``step_every`` updates,
            ``cosine`` decays to 0, and ``constant`` keeps the rate.
        warm_up: Share of the updates during which the rate rises linearly from 1% to 100%.
        step_every: Number of updates after which ``step`` divides the rate by ten.
    """

    kind: Literal["cosine", "poly", "step", "constant"] = "cosine"
    warm_up: Share = 0.0
    step_every: Positive = 2500


class Recipe(Section):
    """Settings of a run.

    Attributes:
        name: Name of the model in results and file names.
        method: Name of the training method (``--method`` overrides it). ``methods`` holds the settings of each method,
            so that one recipe serves a comparison of several methods.
        regions: Segments that may overlap, each with the values of the label maps that belong to it
            ({WT: [1, 2, 3], TC: [2, 3], ET: [3]}); the network then has a sigmoid output for each. By default, the
            segments of the dataset are learned.
        student: 3D network that is kept and exported: its ``kind`` and the settings of this kind (see
            :mod:`trainer.network_configs`).
        init_from: Folder of a finished run whose student provides the initial weights, such as a run pre-trained on
            other scans. The section ``student`` must be the same in both runs. An output layer for another number of
            segments is initialised at random.
        patch: Voxels along X, Y, Z of the preprocessed grid, each rounded up to a multiple of what the student needs
            (the run's recipe records the result). ``auto`` covers a whole scan of median size, with at most 96 voxels
            along an axis.
        batch: Number of patches per update, labelled and unlabelled together.
        updates: Number of optimisation steps of the student; all methods share this budget.
        seed: Seed of all random numbers; the same recipe, data and machine give the same weights.
        scan_weights: Weights of the labels of single scans by name, such as 0.5 for a scan whose outline is uncertain;
            the default weight is 1.
        foreground: Probability that a patch is placed on foreground. For unlabelled scans, this is foreground predicted
            during training, once a prediction exists.
        precision: ``bf16`` or ``fp16`` for mixed precision, or ``fp32``. ``fp16`` needs a GPU; on a CPU, ``bf16`` keeps
            convolutions in float32.
        memory_format: Order of the values of a convolution in memory. ``channels_last`` makes training on a processor
            about 1.1 times as fast (docs/results/throughput); ``contiguous`` is PyTorch's default.
        accumulate: Number of parts into which each batch is split; they are processed one after the other to save
            memory. Losses that pool over the batch (Dice) are then pooled over each part.
        workers: Number of processes that make patches ahead of the training. ``auto`` starts none on a CPU, and on a
            machine with a GPU one less than the number of processor cores per training process, at least one and at
            most eight. The patches do not depend on this number.
        augment_on: ``device`` lets a GPU cut, rotate and deform the patches, so that the workers only read them. This
            suits a machine with few processor cores and a fast GPU.
        validate_every: Number of updates between validations; validation needs a split with a validation list.
        patience: Number of successive validations without improvement after which training stops; None trains to the
            end.
        threads: Number of processor threads for training; all by default.
        checkpoint_every: Number of updates between checkpoints.
        preparation: Preprocessing of scans into the network's input.
        postprocessing: Clean-up of masks, by the name of the segment.
        segments: Codes and colours of segments, by name.
        augmentation: Random augmentation of training patches.
        deep_supervision: Weight of the supervised loss on coarser logits from the levels of the student's decoder; each
            level counts half as much as the next finer one. It is added where the method's loss passes the labelled
            patches unchanged to the student.
        strong_augmentation: Intensity augmentation that turns the weak view of a patch into its strong view, for
            methods that compare views. Its spatial settings are not used.
        ema: Largest decay of a moving average of the exported network's weights. The average starts as a copy of the
            network and is validated and exported in its place. None keeps the weights of the last update.
        optimiser: Optimiser of the student. Methods with further networks have settings for these under ``methods``.
        schedule: Learning-rate schedule of the student. Methods with further networks have settings for these under
            ``methods``.
        methods: Settings of each method, by its name.
        average: Values that are averaged where windows overlap: ``logits``, or probabilities (``probs``).
        blending: Weights of overlapping windows: ``gaussian`` gives the centre of a window more weight, ``constant``
            weights all voxels equally.
        overlap: Share of a window that the next window covers again, as one number or one for each axis, when the run
            segments whole scans (validation, pseudo-labels, `semiseg evaluate RUN`). A stride of s voxels is an overlap
            of 1 - s / window. The setting does not affect exported bundles, which overlap by half.
        transductive: If True, the images (never the labels) of the test scans are also used for training, as in M&N's
            released code, and the reported figures say so. By default, no test scan is in any training pool.
        series: Requirements on the DICOM series for each channel of the exported model, by channel name (see
            :class:`semiseg.volumes.series_rules.SeriesRule`). By default, a channel called CT or MR requires a series
            of that modality.
        windows: Sizes of further sliding windows that the bundle may allow; a window of the patch's size is always
            allowed.
        gate: Requirements that an exported graph has to meet (see :class:`semiseg.bundle.variant.Gate`).
    """

    name: Annotated[str, Field(min_length=1, max_length=64)] = "model"
    method: str = "mn"
    student: dict[str, Any] = {"kind": "unet"}
    init_from: Path | None = None
    patch: tuple[Side, Side, Side] | Literal["auto"] = "auto"
    batch: Positive = 4
    updates: Positive = 4000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    scan_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    foreground: Share = 0.5
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory_format: MemoryFormat = "contiguous"
    accumulate: Positive = 1
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    augment_on: Literal["workers", "device"] = "workers"
    threads: Positive | None = None
    checkpoint_every: Positive = 200
    validate_every: Positive = 500
    patience: Positive | None = None
    preparation: Preparation = Preparation()
    postprocessing: Postprocessing = Postprocessing()
    gate: Gate = Gate()
    series: dict[str, SeriesRule] = {}
    segments: dict[str, SegmentNotes] = {}
    regions: dict[RegionName, tuple[Annotated[int, Field(ge=1, le=255)], ...]] = {}
    augmentation: Augmentation = Augmentation()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    deep_supervision: Annotated[float, Field(ge=0)] = 0.0
    strong_augmentation: Augmentation = Augmentation(
        gamma=(0.5, 2.0),
        gamma_probability=0.5,
        blur_probability=0.3,
        brightness=0.3,
        contrast=0.3,
        noise=0.2,
        intensity_probability=0.8,
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    windows: tuple[tuple[Side, Side, Side], ...] = ()
    average: Literal["logits", "probs"] = "logits"
    blending: Literal["constant", "gaussian"] = "gaussian"
    overlap: Overlap = 0.5
    transductive: bool = False
    methods: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _divides(self) -> Recipe:
        if self.accumulate > self.batch:
            raise ValueError(f"a batch of {self.batch} cannot be split into {self.accumulate} parts")
        return self

    def size(self) -> tuple[int, int, int]:
        """Return the patch size, once it has been decided.

        Raises:
            RecipeError: The patch is still ``auto``.
        """
        if self.patch == "auto":
            raise RecipeError("The patch is decided when the dataset is known; see trainer.plan.make_plan.")
        return self.patch
