"""From a dataset, a split and a recipe to what a run is: the preprocessing decided, the manifest written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.manifest import Channel, Manifest, Provenance
from semiseg.bundle.preprocessing import Preprocessing
from semiseg.dataset import Dataset, Split, read_channels
from semiseg.errors import SemisegError
from semiseg.volumes.segmentation import Segment
from semiseg.volumes.volume import Volume
from trainer.errors import RecipeError
from trainer.methods import make_method
from trainer.methods.method import Method, Task
from trainer.recipe import Recipe
from trainer.students import parameters_of, read_student

Watch = Callable[[str, int, int], None]
AXES: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
LARGEST_AUTO = 96  # voxels per side of a patch that nobody chose


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first update."""

    recipe: Recipe
    dataset: Dataset
    split: Split
    preprocessing: Preprocessing
    fingerprint: Fingerprint
    segments: tuple[Segment, ...]
    method: Method

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result of the run, in plain values."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "split": {name: list(ids) for name, ids in self.training_pools().items()},
            "dataset": self.dataset.name,
        }

    def training_pools(self) -> dict[str, tuple[str, ...]]:
        """The scans that training sees, by the use it makes of them."""
        return {
            "labelled": tuple(self.split.labelled),
            "unlabelled": tuple(self.split.unlabelled),
            "validation": tuple(self.split.validation),
        }


def make_plan(dataset: Dataset, split: Split, recipe: Recipe, watch: Watch | None = None) -> Plan:
    """Decide what the recipe leaves open, from the training scans alone, and refuse what cannot work.

    Raises:
        RecipeError: the recipe contradicts itself, the dataset or the method.
    """
    if not split.labelled:
        raise RecipeError("The split names no labelled scan, so there is nothing to learn from.")
    segments = _segments(dataset, recipe)
    scans = _Scans(dataset, (*split.labelled, *split.unlabelled), recipe.preparation.orientation, watch)
    try:
        fingerprint = Fingerprint.collect(scans, recipe.preparation.orientation)
    except SemisegError as error:
        raise RecipeError(f"Case {scans.current}: {error}") from error
    preprocessing = _preprocessing(recipe, fingerprint, len(dataset.channels), scans.thickest)
    recipe = _with_patch(recipe, fingerprint, preprocessing)
    task = Task(
        inputs=len(dataset.channels),
        outputs=len(segments) + 1,
        slice_axis=preprocessing.slice_axis,
        labelled=len(split.labelled),
        unlabelled=len(split.unlabelled),
    )
    method = make_method(recipe, task)
    method.pretrained()  # weights that are missing or may not be used are refused now
    return Plan(recipe, dataset, split, preprocessing, fingerprint, segments, method)


def make_manifest(plan: Plan, method: Method) -> Manifest:
    """The run's document, before any figure is known."""
    recipe = plan.recipe
    student = read_student(recipe.student)
    divisor = student.divisor()
    network = method.build_student()
    return Manifest(
        kind="run",
        name=recipe.name,
        channels=tuple(Channel(name=name) for name in plan.dataset.channels),
        segments=plan.segments,
        average=recipe.average,
        blending=recipe.blending,
        preprocessing=plan.preprocessing,
        postprocessing=recipe.postprocessing,
        patch=recipe.size(),
        window=recipe.size(),
        windows=(recipe.size(), *(w for w in recipe.windows if w != recipe.size())),
        divisor=(divisor, divisor, divisor),
        fingerprint=plan.fingerprint,
        provenance=Provenance(
            semiseg=metadata.version("semiseg"),
            method=recipe.method,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            dataset=plan.dataset.name,
            labelled=len(plan.split.labelled),
            unlabelled=len(plan.split.unlabelled),
            validation=len(plan.split.validation),
            updates=recipe.updates,
            seed=recipe.seed,
            student=student.model_dump(mode="json"),
            parameters=parameters_of(network),
            pretrained=method.pretrained(),
        ),
    )


def _with_patch(recipe: Recipe, fingerprint: Fingerprint, preprocessing: Preprocessing) -> Recipe:
    """The recipe with its patch decided, and every window a multiple of the student's divisor."""
    student = read_student(recipe.student)
    divisor = student.divisor()
    if recipe.patch == "auto":
        spacing = preprocessing.spacing or fingerprint.spacing.median
        own = zip(fingerprint.shape.median, fingerprint.spacing.median, spacing, strict=True)
        sides = [n * (s / t) for n, s, t in own]  # exactly n where the spacing stays
        largest = max(divisor, LARGEST_AUTO // divisor * divisor)
        x, y, z = (min(largest, math.ceil(side / divisor) * divisor) for side in sides)
        recipe = recipe.model_copy(update={"patch": (x, y, z) if max(x, y, z) > divisor else (2 * divisor,) * 3})
    for name, window in (("patch", recipe.size()), *(("windows", w) for w in recipe.windows)):
        if any(side % divisor for side in window):
            nearest = [max(divisor, round(side / divisor) * divisor) for side in window]
            raise RecipeError(
                f"In the recipe, {name}: {list(window)} does not suit the student, which halves a patch until each "
                f"side is 1/{divisor}; take multiples of {divisor}, such as {nearest}."
            )
    if recipe.windows and not student.any_size:
        raise RecipeError(
            f"In the recipe, windows: a {student.kind} is exported for windows of the patch's size only; "
            "leave `windows` out."
        )
    if max(recipe.size()) == divisor:
        raise RecipeError(
            f"In the recipe, patch: of {list(recipe.size())} the student's coarsest level is a single voxel, which "
            f"cannot be normalised; make a side at least {2 * divisor}."
        )
    return recipe


def _segments(dataset: Dataset, recipe: Recipe) -> tuple[Segment, ...]:
    unknown = set(recipe.segments) - {s.name for s in dataset.segments}
    if unknown:
        known = ", ".join(s.name for s in dataset.segments)
        raise RecipeError(f"In the recipe, segments: {sorted(unknown)[0]!r} is none of the dataset's ({known}).")
    unknown = set(recipe.postprocessing.segments) - {s.name for s in dataset.segments}
    if unknown:
        raise RecipeError(f"In the recipe, postprocessing: {sorted(unknown)[0]!r} is no segment of the dataset.")
    out = []
    for segment in dataset.segments:
        notes = recipe.segments.get(segment.name)
        given = {} if notes is None else {k: v for k, v in notes if v is not None}
        out.append(segment.model_copy(update=given))
    return tuple(out)


def _preprocessing(recipe: Recipe, fingerprint: Fingerprint, channels: int, thickest: Counter[int]) -> Preprocessing:
    wanted = recipe.preparation
    intensity = wanted.intensity * channels if len(wanted.intensity) == 1 else wanted.intensity
    if len(intensity) != channels:
        raise RecipeError(f"In the recipe, preparation.intensity: {len(intensity)} entries for {channels} channels.")
    spacing: tuple[float, float, float] | None
    if wanted.spacing == "own":
        spacing = None
    elif wanted.spacing == "median":
        x, y, z = fingerprint.spacing.median
        spacing = (x, y, z)
    else:
        spacing = wanted.spacing
    best = max(thickest.values())
    axis = max(a for a in AXES if thickest[a] == best) if wanted.slice_axis == "auto" else wanted.slice_axis
    return Preprocessing(
        orientation=wanted.orientation,
        spacing=spacing,
        intensity=intensity,
        crop=wanted.crop,
        slice_axis=axis,
        padding=wanted.padding,
    )


class _Scans:
    """The training scans, one after the other, counting on the way which axis each is thickest along."""

    def __init__(self, dataset: Dataset, ids: tuple[str, ...], orientation: str, watch: Watch | None) -> None:
        self._dataset, self._ids, self._orientation, self._watch = dataset, ids, orientation, watch
        self.current = ""
        self.thickest: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Mapping[str, Volume]]:
        for done, case_id in enumerate(self._ids, start=1):
            self.current = case_id
            channels = read_channels(self._dataset.case(case_id), self._dataset.channels)
            yield channels
            self.thickest[_thickest_axis(next(iter(channels.values())), self._orientation)] += 1
            if self._watch is not None:
                self._watch("reading scans", done, len(self._ids))


def _thickest_axis(volume: Volume, orientation: str) -> int:
    """The axis of ``orientation`` along which the voxels are longest; the last one on a tie."""
    kinds = ["RLAPSI".index(c) // 2 for c in volume.axcodes]
    along = [volume.spacing[kinds.index("RLAPSI".index(c) // 2)] for c in orientation]
    return max(a for a in range(3) if along[a] >= max(along) - 1e-3)
