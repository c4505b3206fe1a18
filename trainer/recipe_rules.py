"""Rules that decide the open keys of a recipe from the training scans and the machine, each with a reason.

In a recipe file, :data:`DECIDABLE_KEYS` may be ``auto``. The decided values replace ``auto`` before the recipe is
validated, so that a run records them. The rules for spacing, patch and levels follow nnU-Net's planner (Isensee et al.,
"nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021,
rule-based parameters), for smaller networks; the other rules follow the project's own measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semiseg.system.durable_files import replace_file
from trainer.errors import RecipeError
from trainer.planning_facts import DatasetFacts, MachineFacts
from trainer.recipe_keys import copy_document, read_key, remove_key, write_key

AUTO = "auto"
COMMITTEE = "committee"
MEMBERS_KEY = f"methods.{COMMITTEE}.members"
DECIDABLE_KEYS = (
    "method",
    "preparation.spacing",
    "preparation.intensity",
    "student",
    "patch",
    "batch",
    "updates",
    "precision",
    "memory_format",
    "augmentation",
    MEMBERS_KEY,
)
"""Keys that may be left open, in the order in which they are decided."""

SPACING_TOLERANCE = 0.01  # spacings are equal if they differ by at most this share
ANISOTROPIC = 3.0  # slices are thick if the longest side of a voxel exceeds the others by more than this factor
SMALLEST_SIDE = 4  # smallest number of voxels of a halved axis
FEW_LABELS = 16  # a committee is chosen for at most this many labelled scans ...
UNLABELLED_PER_LABEL = 2  # ... and at least this many unlabelled scans for each of them

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class RecipeDecision:
    """The value decided for a key, and the reason as a text."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class NetworkSize:
    """Predefined size of a network.

    Attributes:
        name: Name of the size in a recipe.
        channels: Channels of the levels, finest first; if the scans allow fewer levels, the first ones are used.
        residual: True for a DynUNet with residual blocks, False for a plain UNet.
        patch: Largest number of voxels of a patch.
        gpu: GPU memory in GiB from which on the size is chosen; None if it is not chosen for GPUs.
    """

    name: str
    channels: tuple[int, ...]
    residual: bool
    patch: int
    gpu: float | None


NETWORK_SIZES = {
    size.name: size
    for size in (
        NetworkSize("tiny", (8, 16, 32, 64, 128), False, 120_000, None),
        NetworkSize("small", (16, 32, 64, 128, 128), False, 250_000, 0.0),
        NetworkSize("medium", (32, 64, 128, 256, 256), True, 900_000, 10.0),
        NetworkSize("large", (32, 64, 128, 256, 320, 320), True, 2_200_000, 22.0),
    )
}
UPDATES = {"tiny": 2000, "small": 4000, "medium": 10_000, "large": 25_000}
"""Number of updates without a time budget, by size."""

DEFORMATION = 0.1  # largest displacement, as a share of the shortest side of a patch
GRID = 0.5  # distance between the control points of a deformation, as a share of the shortest side of a patch


def open_keys(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that a recipe leaves open, in the order in which they are decided.

    A key is open if its value is ``auto``; ``student`` is also open if it is the name of a size. If ``patch`` is the
    only open key, the result is empty, because :func:`trainer.plan.make_plan` decides it.
    """
    found = tuple(key for key in DECIDABLE_KEYS if _is_open(key, read_key(document, key)))
    return () if found == ("patch",) else found


def decide_open_keys(
    document: Mapping[str, Any], facts: DatasetFacts, machine: MachineFacts
) -> tuple[dict[str, Any], list[RecipeDecision]]:
    """Decide all open keys; return the completed document and the decisions.

    Args:
        document: The recipe as read from YAML.
        facts: Facts about the training scans.
        machine: Facts about the machine that trains.
    """
    chosen = _Choices(copy_document(document), facts, machine)
    decisions = []
    for key in open_keys(document):
        if key == MEMBERS_KEY and chosen.document.get("method") != COMMITTEE:
            remove_key(chosen.document, key)  # the method's own default holds, in case another method leads to it
            continue
        value, reason = _RULES[key](chosen)
        write_key(chosen.document, key, value)
        decisions.append(RecipeDecision(key, value, reason))
    return chosen.document, decisions


def choose_strides(patch: tuple[float, ...], spacing: tuple[float, ...], levels: int) -> list[list[int]]:
    """Choose the strides between levels: an axis is halved if its spacing is less than twice the smallest spacing.

    Args:
        patch: Number of voxels of a patch along each axis.
        spacing: Voxel spacing in mm.
        levels: Largest number of levels.
    """
    sides, mm = list(patch), list(spacing)
    found: list[list[int]] = []
    while len(found) < levels - 1:
        shortest = min(mm)
        halved = [
            2 if side / 2 >= SMALLEST_SIDE and length < 2 * shortest else 1
            for side, length in zip(sides, mm, strict=True)
        ]
        if halved == [1, 1, 1]:
            break
        sides = [side / by for side, by in zip(sides, halved, strict=True)]
        mm = [length * by for length, by in zip(mm, halved, strict=True)]
        found.append(halved)
    return found


def choose_patch(shape: tuple[float, ...], most: int) -> Triple:
    """Choose a patch of at most ``most`` voxels in the proportions of a scan; the whole scan if it is small enough."""
    sides = [max(1, round(n)) for n in shape]
    while math.prod(sides) > most and max(sides) > 1:
        # Shorten the axis along which the patch covers the largest share of the scan, as in nnU-Net.
        longest = max((a for a in range(3) if sides[a] > 1), key=lambda axis: (sides[axis] / shape[axis], sides[axis]))
        sides[longest] = min(sides[longest] - 1, int(0.95 * sides[longest]))
    x, y, z = sides
    return (x, y, z)


def write_decisions(decisions: tuple[RecipeDecision, ...], file: Path) -> None:
    """Write decisions and their reasons as JSON."""
    text = json.dumps([asdict(decision) for decision in decisions], indent=1)
    replace_file(file, f"{text}\n".encode())


class _Choices:
    """State of the decisions: the document, which is completed key by key, and the facts that the rules use."""

    def __init__(self, document: dict[str, Any], facts: DatasetFacts, machine: MachineFacts) -> None:
        self.document, self.facts, self.machine = document, facts, machine
        self.sized = isinstance(document.get("student"), str)  # else the recipe has a network of its own
        self.size = self._size()

    def _size(self) -> NetworkSize:
        """Return the size in the recipe, or else the largest one that suits the machine."""
        named = self.document.get("student")
        if isinstance(named, str) and named in NETWORK_SIZES:
            return NETWORK_SIZES[named]
        if self.machine.gpu is None:
            return NETWORK_SIZES["tiny"]
        fitting = [
            size for size in NETWORK_SIZES.values() if size.gpu is not None and self.machine.gpu_memory >= size.gpu
        ]
        return fitting[-1]

    @property
    def spacing(self) -> tuple[float, ...]:
        """The voxel spacing of the network's grid in mm if it is decided, or else the median over the scans."""
        given = read_key(self.document, "preparation.spacing")
        return tuple(given) if isinstance(given, list | tuple) else self.facts.fingerprint.spacing.median

    @property
    def shape(self) -> tuple[float, ...]:
        """The number of voxels of a scan of median size on the network's grid, along each axis."""
        told = self.facts.fingerprint
        return tuple(
            n * own / mm for n, own, mm in zip(told.shape.median, told.spacing.median, self.spacing, strict=True)
        )

    @property
    def patch(self) -> tuple[float, ...]:
        """The patch in the recipe, or else the one that suits the scans and the size."""
        given = self.document.get("patch", AUTO)
        return tuple(given) if isinstance(given, list | tuple) else choose_patch(self.shape, self.size.patch)


def _method(chosen: _Choices) -> tuple[str, str]:
    labelled, unlabelled = chosen.facts.labelled, chosen.facts.unlabelled
    if not unlabelled:
        return "supervised", "all scans are labelled, so there are no unlabelled scans to learn from"
    if labelled == 1:
        return "supervised", "with one labelled scan, registration cannot be assessed"
    if labelled > FEW_LABELS:
        return "supervised", f"with more than {FEW_LABELS} labelled scans, no method was measured to be better"
    if unlabelled < UNLABELLED_PER_LABEL * labelled:
        return "supervised", "there are too few unlabelled scans to label by a committee"
    return COMMITTEE, (
        "two networks and the registered labelled scans label the other scans, from which one network learns; with "
        "four labelled scans, this was better than supervised training (docs/results/default)"
    )


def _spacing(chosen: _Choices) -> tuple[Any, str]:
    told = chosen.facts.fingerprint.spacing
    if all(high <= low * (1 + SPACING_TOLERANCE) for low, high in zip(told.minimum, told.maximum, strict=True)):
        return "own", "all scans have the same voxel spacing"
    median = [float(v) for v in told.median]
    thick = max(range(3), key=lambda axis: median[axis])
    others = min(v for axis, v in enumerate(median) if axis != thick)
    if median[thick] > ANISOTROPIC * others and told.minimum[thick] < median[thick]:
        # Between the smallest and the median slice thickness; nnU-Net takes the tenth percentile along this axis.
        median[thick] = max(others, float(f"{math.sqrt(told.minimum[thick] * median[thick]):.4g}"))
        return median, "the median over the scans, but finer along the axis of thick slices, to preserve thin slices"
    return median, "the median over the scans, which have different voxel spacings"


def _intensity(chosen: _Choices) -> tuple[list[dict[str, Any]], str]:
    found, words = [], []
    for modality, (low, high) in zip(chosen.facts.modalities, chosen.facts.foreground, strict=True):
        if modality == "CT" and low < high:
            found.append({"clip": [low, high], "scale": "window"})
            words.append(f"CT has units, so {low:g} to {high:g} HU (values inside the outlines) are scaled to 0 to 1")
        else:
            found.append({"scale": "zscore"})
            words.append(f"{modality or 'an unknown modality'} has no units, so each scan is normalised separately")
    alike = all(one == found[0] for one in found)
    return (found[:1] if alike else found), "; ".join(dict.fromkeys(words))


def _student(chosen: _Choices) -> tuple[dict[str, Any], str]:
    return _network(chosen, chosen.size)


def _network(chosen: _Choices, size: NetworkSize) -> tuple[dict[str, Any], str]:
    """Return the section of a network of a size, and why the size was chosen."""
    steps = choose_strides(chosen.patch, chosen.spacing, len(size.channels))
    if size.residual:
        # DynUNet's first level always has full resolution.
        channels = list(size.channels[: len(steps) + 1])
        if len(channels) < 3:
            return _plain(size, steps), f"{_why(chosen)}; the scans allow only {len(steps)} halving(s)"
        return {"kind": "dynunet", "channels": channels, "strides": steps, "residual": True}, _why(chosen)
    return _plain(size, steps), _why(chosen)


def _plain(size: NetworkSize, steps: list[list[int]]) -> dict[str, Any]:
    """Return the section of a UNet whose first level keeps the resolution."""
    kept = steps[: len(size.channels) - 2]
    strides = [[1, 1, 1], *kept]
    return {
        "kind": "unet",
        "channels": list(size.channels[: len(strides) + 1]),
        "strides": strides,
        "residual_units": 0,
    }


def _why(chosen: _Choices) -> str:
    size = chosen.size
    if chosen.document.get("student") == size.name:
        return f"the recipe names the size {size.name}; levels and strides follow from patch and spacing"
    if chosen.machine.gpu is None:
        return f"size {size.name} for training on a processor; a level at full resolution is worth its time"
    return f"size {size.name} for {chosen.machine}; levels and strides follow from patch and spacing"


def _patch(chosen: _Choices) -> tuple[list[int], str]:
    found = choose_patch(chosen.shape, chosen.size.patch)
    whole = all(p >= n - 0.5 for p, n in zip(found, chosen.shape, strict=True))
    words = "a scan of median size" if whole else f"in the proportions of a scan, at most {chosen.size.patch:,} voxels"
    return list(found), f"{words} (size {chosen.size.name})"


def _batch(chosen: _Choices) -> tuple[int, str]:
    return 4, "two labelled and two unlabelled patches, which suits every method"


def _updates(chosen: _Choices) -> tuple[int, str]:
    return UPDATES[chosen.size.name], f"the default for size {chosen.size.name}; use --budget to give a time instead"


def _precision(chosen: _Choices) -> tuple[str, str]:
    if chosen.machine.gpu is None:
        return "fp32", "a lower precision does not speed up processors"
    if chosen.machine.bf16:
        return "bf16", "the GPU supports it, and it has the range of fp32"
    return "fp16", "the GPU does not support bf16"


def _memory_format(chosen: _Choices) -> tuple[str, str]:
    if chosen.machine.gpu is None:
        return "channels_last", "on a processor, convolutions then need no conversion of their values"
    return "contiguous", "channels_last was not measured on a GPU"


def _augmentation(chosen: _Choices) -> tuple[dict[str, Any], str]:
    mm = [n * side for n, side in zip(chosen.patch, chosen.spacing, strict=True)]
    shortest = min(mm)
    thick = max(chosen.spacing) > ANISOTROPIC * min(chosen.spacing)
    found = {
        "scale": [0.85, 1.15],
        "rotate": 15,
        "rotate_out_of_plane": 0 if thick else 15,
        "elastic": float(f"{DEFORMATION * shortest:.3g}"),
        "elastic_grid": float(f"{GRID * shortest:.3g}"),
        "blur_probability": 0.2,
        "low_resolution_probability": 0.25,
        "gamma": [0.7, 1.5],
        "gamma_probability": 0.3,
        "gamma_inverted": 0.25,
        "brightness": 0.1,
        "contrast": 0.25,
        "noise": 0.1,
    }
    words = "as measured in docs/results/student, with deformations in proportion to the patch; no mirroring, since"
    return found, f"{words} one-sided organs would then be found on either side"


def _members(chosen: _Choices) -> tuple[list[dict[str, Any]], str]:
    """Return a supervised network one size larger than the student, and the student with a mean teacher."""
    mean_teacher = {"method": "mean_teacher"}
    sizes = list(NETWORK_SIZES.values())
    if not chosen.sized or chosen.size is sizes[-1]:
        return [{"method": "supervised"}, mean_teacher], "two networks of the student's size"
    larger = sizes[sizes.index(chosen.size) + 1]
    network, _ = _network(chosen, larger)
    words = f"a network of size {larger.name}, since it is not kept, and one of the student's size with a mean teacher"
    return [{"method": "supervised", "student": network}, mean_teacher], words


_RULES: dict[str, Callable[[_Choices], tuple[Any, str]]] = {
    "method": _method,
    "preparation.spacing": _spacing,
    "preparation.intensity": _intensity,
    "student": _student,
    "patch": _patch,
    "batch": _batch,
    "updates": _updates,
    "precision": _precision,
    "memory_format": _memory_format,
    "augmentation": _augmentation,
    MEMBERS_KEY: _members,
}


def _is_open(key: str, value: Any) -> bool:
    if key == "student" and isinstance(value, str) and value != AUTO:
        if value not in NETWORK_SIZES:
            raise RecipeError(
                f"In the recipe, student: {value!r} is not a size; there are {', '.join([AUTO, *NETWORK_SIZES])}."
            )
        return True
    return bool(value == AUTO)
