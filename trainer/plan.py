"""Plan of a run, made from a dataset, a split and a recipe: its preprocessing, stages and manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.manifest import Channel, Manifest, PretrainedWeights, Provenance
from semiseg.bundle.preprocessing import Preprocessing
from semiseg.dataset import Dataset, Split
from semiseg.dataset.dataset_json import distinct_colours
from semiseg.volumes.segmentation import Segment, are_overlapping
from semiseg.volumes.series_rules import SeriesRule
from trainer.errors import RecipeError
from trainer.initial_weights import check_initial_run
from trainer.methods import find_method, make_method
from trainer.methods.method import SegmentationTask
from trainer.network_configs import count_parameters, patch_divisor
from trainer.recipe import Recipe
from trainer.scan_facts import MODALITIES, ScanFacts, collect_scan_facts
from trainer.stages import StageSequence
from trainer.targets import MAX_REGIONS, make_targets

ProgressCallback = Callable[[str, int, int], None]
AXES: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
MAX_AUTO_PATCH_SIDE = 96  # largest side in voxels of an automatic patch


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is decided before the first update.

    Attributes:
        recipe: Recipe with the decided patch.
        dataset: The dataset.
        split: Labelled, unlabelled, validation and test scans.
        preprocessing: Preprocessing of the scans.
        segments: Segments that the network learns.
        stages: Stages of the method.
        scans: Sizes and values of the training scans.
        inherited_weights: Pretrained weights of the run from which the student starts.
    """

    recipe: Recipe
    dataset: Dataset
    split: Split
    preprocessing: Preprocessing
    segments: tuple[Segment, ...]
    stages: StageSequence
    scans: ScanFacts
    inherited_weights: tuple[PretrainedWeights, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The values that determine the result of the run, as plain data."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "split": {name: list(ids) for name, ids in self.training_pools().items()},
            "dataset": self.dataset.name,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """The ranges of sizes and values over the training scans."""
        return self.scans.fingerprint

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The scans used for training without labels, including the test scans for a transductive recipe."""
        return _unlabelled(self.split, self.recipe)

    def training_pools(self) -> dict[str, tuple[str, ...]]:
        """Return the scans that the run uses, by their use."""
        return {
            "labelled": tuple(self.split.labelled),
            "unlabelled": self.unlabelled,
            "validation": tuple(self.split.validation),
        }


def make_plan(
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    watch: ProgressCallback | None = None,
    scans: ScanFacts | None = None,
    preprocessing: Preprocessing | None = None,
) -> TrainingPlan:
    """Decide values that the recipe leaves open from the training scans alone, and check the recipe.

    Args:
        dataset: The dataset.
        split: Labelled, unlabelled, validation and test scans.
        recipe: The recipe.
        watch: Called with (activity, done, total) while scans are read.
        scans: Sizes and values of the training scans, if they were read before.
        preprocessing: Preprocessing to use instead of the recipe's, for a network that shares it with another one.

    Raises:
        RecipeError: The recipe is inconsistent, or does not suit the dataset or the method.
    """
    if not split.labelled:
        raise RecipeError("The split names no labelled scan, so there is nothing to learn from.")
    if recipe.patience is not None and not split.validation:
        raise RecipeError(
            "In the recipe, patience: the split has no validation list to stop early by; name validation scans in the "
            "split (they count as labelled), or leave `patience` out."
        )
    _require_channels(recipe, dataset)
    segments = _segments(dataset, recipe)
    unlabelled = _unlabelled(split, recipe)
    scans = scans or collect_scan_facts(dataset, (*split.labelled, *unlabelled), recipe.preparation.orientation, watch)
    fingerprint = scans.fingerprint
    preprocessing = preprocessing or _preprocessing(recipe, fingerprint, len(dataset.channels), scans.thickest)
    recipe = _with_patch(recipe, fingerprint, preprocessing)
    task = SegmentationTask(
        inputs=len(dataset.channels),
        targets=make_targets(len(segments), overlapping=are_overlapping(segments)),
        slice_axis=preprocessing.slice_axis,
        labelled=len(split.labelled),
        unlabelled=len(unlabelled),
    )
    stages = StageSequence(make_method(recipe, task))
    stages.pretrained()  # raises an error for weights that are missing or may not be used
    for stage in stages.stages:
        for step in {0, stage.steps - 1} if stage.steps else ():
            stage.step_plan(step)  # raises an error for impossible batch compositions
    earlier = check_initial_run(recipe, task.inputs)
    inherited = () if earlier is None else earlier.provenance.pretrained
    return TrainingPlan(recipe, dataset, split, preprocessing, segments, stages, scans, inherited)


def _unlabelled(split: Split, recipe: Recipe) -> tuple[str, ...]:
    return (*split.unlabelled, *(split.test if recipe.transductive else ()))


def make_manifest(plan: TrainingPlan) -> Manifest:
    """Create the manifest of the run, without figures."""
    recipe = plan.recipe
    stages = plan.stages
    student, task = stages.exported_config(), stages.last.task
    network = student.build(task.inputs, task.targets.channels, recipe.size())
    return Manifest(
        kind="run",
        name=recipe.name,
        channels=tuple(Channel(name=name, series=_rule(recipe, name)) for name in plan.dataset.channels),
        segments=plan.segments,
        activation="sigmoid" if are_overlapping(plan.segments) else "softmax",
        average=recipe.average,
        blending=recipe.blending,
        overlap=recipe.overlap,
        preprocessing=plan.preprocessing,
        postprocessing=recipe.postprocessing,
        gate=recipe.gate,
        patch=recipe.size(),
        window=recipe.size(),
        windows=(recipe.size(), *(w for w in recipe.windows if w != recipe.size())),
        divisor=student.divisor(),
        fingerprint=plan.fingerprint,
        provenance=Provenance(
            semiseg=metadata.version("semiseg"),
            method=recipe.method,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            dataset=plan.dataset.name,
            labelled=len(plan.split.labelled),
            unlabelled=len(plan.unlabelled),
            transductive=recipe.transductive,
            validation=len(plan.split.validation),
            updates=recipe.updates,
            seed=recipe.seed,
            student=student.model_dump(mode="json"),
            parameters=count_parameters(network),
            pretrained=(*stages.pretrained(), *plan.inherited_weights),
            taught_by=stages.taught_by(),
        ),
    )


def _with_patch(recipe: Recipe, fingerprint: Fingerprint, preprocessing: Preprocessing) -> Recipe:
    """Return the recipe with its patch decided: each side is rounded up to a multiple of the student's divisor."""
    students = find_method(recipe).students(recipe)
    divisor = patch_divisor(students)
    sides: tuple[float, ...]
    if recipe.patch == "auto":
        spacing = preprocessing.spacing or fingerprint.spacing.median
        own = zip(fingerprint.shape.median, fingerprint.spacing.median, spacing, strict=True)
        largest = [max(d, MAX_AUTO_PATCH_SIDE // d * d) for d in divisor]
        sides = tuple(min(most, n * (s / t)) for (n, s, t), most in zip(own, largest, strict=True))
    else:
        sides = recipe.patch
    x, y, z = (math.ceil(side / d) * d for side, d in zip(sides, divisor, strict=True))
    if (x, y, z) == divisor and max(divisor) > 1:
        if recipe.patch != "auto":
            raise RecipeError(
                f"In the recipe, patch: with {list(recipe.patch)}, the student's coarsest level is a single voxel, "
                f"which cannot be normalised; make a side at least {2 * max(divisor)}."
            )
        x, y, z = (2 * d for d in divisor)
    for window in recipe.windows:
        if any(side % d for side, d in zip(window, divisor, strict=True)):
            nearest = [max(d, round(side / d) * d) for side, d in zip(window, divisor, strict=True)]
            raise RecipeError(
                f"In the recipe, windows: {list(window)} does not suit the student, which needs multiples of "
                f"{list(divisor)}, such as {nearest}."
            )
    fixed = [student.kind for student in students if not student.takes_any_size]
    if recipe.windows and fixed:
        raise RecipeError(
            f"In the recipe, windows: a {fixed[0]} is exported for windows of the patch's size only; "
            "leave `windows` out."
        )
    return recipe.model_copy(update={"patch": (x, y, z)})


def _segments(dataset: Dataset, recipe: Recipe) -> tuple[Segment, ...]:
    """Return the dataset's segments or the recipe's regions, with the colours and codes in the recipe."""
    known = {s.name: s for s in dataset.segments}
    if recipe.regions:
        known = _regions(dataset, recipe)
    if are_overlapping(tuple(known.values())) and len(known) > MAX_REGIONS:
        raise RecipeError(
            f"There are {len(known)} regions that may overlap, but a model can have at most {MAX_REGIONS}."
        )
    for section, names in (("segments", recipe.segments), ("postprocessing", recipe.postprocessing.segments)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise RecipeError(
                f"In the recipe, {section}: {unknown[0]!r} is not one of the segments ({', '.join(known)})."
            )
    out = []
    for segment in known.values():
        notes = recipe.segments.get(segment.name)
        given = {} if notes is None else {k: v for k, v in notes if v is not None}
        out.append(segment.model_copy(update=given))
    return tuple(out)


def _regions(dataset: Dataset, recipe: Recipe) -> dict[str, Segment]:
    allowed = set(dataset.label_values)
    for name, values in recipe.regions.items():
        strange = sorted(set(values) - allowed)
        if strange:
            named = ", ".join(s.display_name for s in dataset.segments)
            raise RecipeError(
                f"In the recipe, regions: {name!r} contains the value {strange[0]}, which no segment has ({named})."
            )
    colours = distinct_colours(len(recipe.regions))
    pairs = zip(recipe.regions.items(), colours, strict=True)
    return {
        name: Segment(name=name, label=k, values=tuple(values), colour=colour)
        for k, ((name, values), colour) in enumerate(pairs, start=1)
    }


def _require_channels(recipe: Recipe, dataset: Dataset) -> None:
    unknown = [name for name in recipe.series if name not in dataset.channels]
    if unknown:
        raise RecipeError(
            f"In the recipe, series: {unknown[0]!r} is not one of the channels ({', '.join(dataset.channels)})."
        )


def _rule(recipe: Recipe, channel: str) -> SeriesRule:
    """Return the rule for DICOM series of a channel: the recipe's, or the modality that the channel's name states."""
    return recipe.series.get(channel) or SeriesRule(modality=MODALITIES.get(channel.upper()))


def _preprocessing(
    recipe: Recipe, fingerprint: Fingerprint, channels: int, thickest: Mapping[int, int]
) -> Preprocessing:
    wanted = recipe.preparation
    intensity = wanted.intensity * channels if len(wanted.intensity) == 1 else wanted.intensity
    if len(intensity) != channels:
        raise RecipeError(
            f"In the recipe, preparation.intensity: there are {len(intensity)} entries for {channels} channels."
        )
    spacing: tuple[float, float, float] | None
    if wanted.spacing == "own":
        spacing = None
    elif wanted.spacing == "median":
        x, y, z = fingerprint.spacing.median
        spacing = (x, y, z)
    else:
        spacing = wanted.spacing
    best = max(thickest.values())
    axis = max(a for a in AXES if thickest.get(a, 0) == best) if wanted.slice_axis == "auto" else wanted.slice_axis
    return Preprocessing(
        orientation=wanted.orientation,
        spacing=spacing,
        intensity=intensity,
        crop=wanted.crop,
        slice_axis=axis,
        padding=wanted.padding,
    )
