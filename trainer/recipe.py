"""A recipe: everything that decides what a run computes, in one validated YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
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
    """A part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Preparation(Section):
    """How scans become the network's input; what is left open is decided from the dataset and recorded in the run.

    Attributes:
        orientation: axes of the network's grid, by the side to which each leads: R or L, A or P, S or I.
        spacing: mm per axis; ``own`` keeps each scan's, ``median`` takes the median over the training scans.
        intensity: one entry for all channels, or one per channel.
        slice_axis: axis along which 2D teachers slice; ``auto`` is the axis of largest spacing in most training scans,
            the last one on a tie.
        crop: ``nonzero`` cuts away the rim in which all channels are zero.
        padding: what surrounds a scan that is smaller than the patch: its border again, or zeros.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | Literal["own", "median"] = "own"
    intensity: tuple[Intensity, ...] = (Intensity(),)
    crop: Literal["none", "nonzero"] = "none"
    slice_axis: Literal["auto", 0, 1, 2] = "auto"
    padding: Literal["edge", "zero"] = "edge"

    @model_validator(mode="after")
    def _possible(self) -> Preparation:
        """Refuse here what :class:`Preprocessing` would refuse only after every scan has been read."""
        spacing = None if isinstance(self.spacing, str) else self.spacing
        try:
            Preprocessing(orientation=self.orientation, spacing=spacing, intensity=self.intensity)
        except ValidationError as error:
            raise ValueError(validation_message(error)) from None
        return self


class SegmentNotes(Section):
    """What a dataset folder does not say about a segment: its DICOM codes and its colour.

    Attributes:
        colour: red, green and blue in pictures and viewers; by default one of our own for each segment.
        painted: value of a region where all regions are to be one label map: each is painted over those before.
        category, type: what the segment is, as a SEG names it (PS3.3 C.8.20.2); by default tissue, and a code of a
            private scheme that means the segment's name.
    """

    colour: tuple[ByteValue, ByteValue, ByteValue] | None = None
    painted: Annotated[int, Field(ge=1, le=255)] | None = None
    category: ConceptCode | None = None
    type: ConceptCode | None = None


RegionName = Annotated[str, Field(min_length=1, max_length=64)]


class Augmentation(Section):
    """Random changes to a training patch; each is drawn anew for each patch.

    Attributes:
        affine: probability of the spatial change (scale and rotation, in one interpolation).
        scale: limits of the zoom; one factor for all axes (M&N's are 0.9 to 1.1).
        rotate: largest angle in degrees about the slice axis, within the plane of the slices.
        rotate_out_of_plane: largest angle about the two other axes; 0 keeps every slice a slice.
        quarter_turns: probability of a turn by a random number of right angles in the plane of the slices (of half
            turns, where the patch is not square there).
        flip: axes that are mirrored with probability ``flip_probability`` each.
        flip_probability: of each of the axes in ``flip``.
        gamma: exponent limits, applied to the patch scaled to 0..1 and back, with probability ``gamma_probability``.
        gamma_probability: of a gamma for a patch.
        gamma_inverted: Share of the gammas that are applied to the inverted patch, so that bright values are bent as
            dark ones are.
        elastic: Largest displacement in mm of a smooth deformation, with probability ``elastic_probability``.
        elastic_probability: Probability of a deformation for a patch.
        elastic_grid: Distance in mm of the deformation's control points.
        blur: Limits of the standard deviation, in voxels, of a Gaussian blur, with probability ``blur_probability``.
        blur_probability: Probability of a blur for a patch.
        low_resolution: Limits of the share of voxels along each axis to which a patch is reduced before it is enlarged
            again, with probability ``low_resolution_probability``.
        low_resolution_probability: Probability of a lower resolution for a patch.
        brightness, contrast, noise: additive shift, multiplicative change and standard deviation of Gaussian noise,
            each as the largest amount in units of the normalised image, with probability ``intensity_probability``.
        intensity_probability: of each of brightness, contrast and noise for a patch.
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
    """How a network learns.

    Attributes:
        kind: AdamW, or stochastic gradient descent with momentum.
        rate: the learning rate from which the schedule starts.
        weight_decay: how fast weights shrink: AdamW's decoupled decay, or SGD's penalty on their squares.
        momentum: of SGD.
        clip_norm: gradients longer than this are shortened to it; none are by default.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class Schedule(Section):
    """The learning rate over a run, as a factor of the optimiser's rate.

    Attributes:
        kind: ``poly`` decays as (1 - t/T)^0.9, ``step`` by ten every ``step_every`` updates, ``cosine`` to 0.
        warm_up: share of the updates during which the rate rises from 1% to 100%.
        step_every: updates between the steps of ``step``.
    """

    kind: Literal["cosine", "poly", "step", "constant"] = "cosine"
    warm_up: Share = 0.0
    step_every: Positive = 2500


class Recipe(Section):
    """All that decides what a run computes.

    Attributes:
        name: of the model, in answers and file names.
        method: which method trains (``--method`` overrides it); ``methods`` holds the switches of each by name, so that
            one recipe serves a comparison of several methods.
        regions: segments that may overlap, each by the values of the label maps that belong to it
            ({WT: [1, 2, 3], TC: [2, 3], ET: [3]}); the network then has a sigmoid for each. Without them the dataset's
            own segments are learned.
        student: the 3D network that is kept: ``kind`` and its own settings (see :mod:`trainer.network_configs`).
        start: a finished run whose student this one starts from, such as one pre-trained on other scans. Its section
            ``student`` must be this one's; an output layer for other segments starts anew.
        patch: voxels along X, Y, Z of the preprocessed grid, each rounded up to a multiple of what the student needs
            (the run's recipe says what it became); ``auto`` holds a whole scan of median size where that is
            at most 96 voxels along an axis.
        batch: patches per update, labelled and unlabelled together.
        updates: optimisation steps of the student, the budget that all methods share.
        seed: of everything random; the same recipe, data and machine give the same weights.
        scan_weights: Weights of the labels of single scans by name, such as 0.5 for one whose outline is doubted; all
            others count 1.
        foreground: probability that a patch is placed on foreground (for unlabelled scans: on foreground predicted
            during training, once there is any).
        precision: ``bf16`` or ``fp16`` mixed precision, or ``fp32``. ``fp16`` needs a GPU, and on a CPU ``bf16`` leaves
            convolutions in float32.
        memory_format: Order of the values of a convolution in memory. ``channels_last`` makes training on a processor
            1.1 to 1.5 times as fast; ``contiguous`` is PyTorch's own.
        accumulate: split each batch into this many parts, one after the other: less memory. Losses that pool over the
            batch (Dice) are then pooled over each part.
        workers: processes that make patches ahead of the training; ``auto`` is none on a CPU, and beside a GPU one for
            every other core, at most eight. The patches do not depend on it.
        augment_on: ``device`` lets a GPU cut, turn and bend the patches that the workers have only read: for a machine
            with few cores beside a fast GPU.
        validate_every: updates between validations; needs a split with a validation list.
        patience: stop when this many validations in a row were not better than the best; None trains to the end.
        threads: processor threads of the training; all by default.
        checkpoint_every: updates between checkpoints.
        preparation: how scans become the network's input.
        postprocessing: how a mask is cleaned, by the segment's name.
        segments: codes and colours of segments, by name.
        augmentation: random changes to training patches.
        deep_supervision: Weight of the supervised loss on coarser logits from the levels of the student's decoder; each
            level counts half of the finer one. It is added where the method's loss shows the student the labelled
            patches as they are.
        strong_augmentation: Changes of values that make the strong view of a patch of its weak one, for methods that
            compare views. Its spatial settings are not used.
        ema: Largest decay of a moving average of the exported network's weights, which starts as a copy; the average is
            then validated and exported. None keeps the last iterate.
        optimiser, schedule: how the student learns; methods with further networks have their own in their switches.
        methods: the switches of each method, by its name.
        average, blending: of overlapping windows: what is averaged, and whether a window's middle counts more.
        overlap: Share of a window covered again by the next, or one for each axis, where the run segments whole scans
            (validation, pseudo-labels, `semiseg evaluate RUN`). A stride of s voxels is an overlap of 1 - s / window.
            An exported bundle overlaps by half, whatever this is.
        transductive: learn from the images (never the labels) of the test scans too, as M&N's released code does; the
            figures then say so. By default no test scan is in any training pool.
        series: for each channel by name, what a DICOM series has to be to serve it in the exported model (see
            :class:`semiseg.volumes.series_rules.SeriesRule`); without a word a channel called CT or MR is of that
            modality.
        windows: further sliding windows that the bundle may allow; the patch always is.
        gate: what an exported graph has to reach (see :class:`semiseg.bundle.variant.Gate`).
    """

    name: Annotated[str, Field(min_length=1, max_length=64)] = "model"
    method: str = "mn"
    student: dict[str, Any] = {"kind": "unet"}
    start: Path | None = None
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
        """The patch, once it has been decided."""
        if self.patch == "auto":
            raise RecipeError("The patch is decided when the dataset is known; see trainer.plan.make_plan.")
        return self.patch


def read_recipe(path: Path, changes: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``--set key=value`` changes to it (``methods.mn.teacher.finetune=whole``).

    Raises:
        RecipeError: not readable, not YAML, or a value that does not hold; the sentence names the key.
    """
    return make_recipe(read_document(path, changes), source=str(path))


def read_document(path: Path, changes: list[str] | None = None) -> dict[str, Any]:
    """A recipe as YAML gives it, with changes, before any value is looked at: keys may be left open (``auto``).

    Raises:
        RecipeError: Not readable, not YAML, or a change that is none.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        raise RecipeError(f"The recipe {path} is not a list of `key: value` lines.")
    return apply_changes(document, changes or [])


def apply_changes(document: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """A document with ``--set key=value`` changes.

    Raises:
        RecipeError: A change is not of that form.
    """
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key:
            raise RecipeError(f"`--set {change}` is not of the form key=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"`--set {change}`: {text!r} is not a YAML value.") from None
        _set(document, key.split("."), value, change)
    return document


def make_recipe(document: dict[str, Any], changes: list[str] | None = None, *, source: str = "the recipe") -> Recipe:
    """Validate a recipe given as a mapping; see :func:`read_recipe`."""
    document = apply_changes(document, changes or [])
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(f"In {source}: {validation_message(error)}.") from None


def _set(document: dict[str, Any], keys: list[str], value: Any, change: str) -> None:
    place = document
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise RecipeError(f"`--set {change}`: {key!r} is a value, not a section.")
    place[keys[-1]] = value


def find_recipe(name: str) -> Path:
    """A recipe file by path, or one of those that come with semiseg by name.

    Raises:
        RecipeError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(__file__).parent / "recipes"
    if (shipped / f"{name}.yaml").is_file():
        return shipped / f"{name}.yaml"
    names = ", ".join(sorted(p.relative_to(shipped).with_suffix("").as_posix() for p in shipped.rglob("*.yaml")))
    raise RecipeError(f"There is no recipe file {name}, and none of that name comes with semiseg (there are: {names}).")
