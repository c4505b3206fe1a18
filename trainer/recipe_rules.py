"""What a recipe leaves open, decided from the training scans and the machine, each decision with its reason.

A recipe file may say ``auto`` for :data:`DECIDABLE_KEYS`; the word is replaced before the recipe is read, so that a
run keeps what was decided. The rules for spacing, patch and levels follow nnU-Net's planner (Isensee et al., "nnU-Net:
a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021, rule-based
parameters), on smaller networks; what was measured here decides the rest.
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

AUTO = "auto"
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
)
"""The keys that may be left open, in the order in which they are decided."""

SPACING_TOLERANCE = 0.01  # spacings that differ by a smaller share are the same
ANISOTROPIC = 3.0  # voxels whose sides differ by this factor have an axis of thick slices
SMALLEST_SIDE = 4  # voxels of the coarsest level along each axis

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class RecipeDecision:
    """What was decided for a key, and why, in a sentence."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class NetworkSize:
    """A network.

    Attributes:
        name: Its name in a recipe.
        channels: Channels of the levels, the finest first; scans that allow fewer levels use the first ones.
        residual: DynUNet with residual blocks; else a plain UNet.
        patch: Most voxels of a patch.
        gpu: GiB of a GPU's memory from which on it is chosen; None for processors.
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
"""Updates where no budget of time says how many."""

DEFORMATION = 0.1  # largest displacement, as a share of the shortest side of a patch
GRID = 0.5  # distance of the control points of a deformation, the same


def open_keys(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys for which a recipe says ``auto`` (a student may be a size, too), in the order of deciding.

    A recipe whose patch alone is ``auto`` is none of these: the patch then follows the scans, as it always has.
    """
    found = tuple(key for key in DECIDABLE_KEYS if _is_open(key, read_key(document, key)))
    return () if found == ("patch",) else found


def decide_open_keys(
    document: Mapping[str, Any], facts: DatasetFacts, machine: MachineFacts
) -> tuple[dict[str, Any], list[RecipeDecision]]:
    """A recipe's document with everything decided, and the decisions.

    Args:
        document: The recipe as YAML gives it.
        facts: What is known of the training scans.
        machine: What trains.
    """
    chosen = _Choices(_copied(document), facts, machine)
    decisions = []
    for key in open_keys(document):
        value, reason = _RULES[key](chosen)
        write_key(chosen.document, key, value)
        decisions.append(RecipeDecision(key, value, reason))
    return chosen.document, decisions


def choose_strides(patch: tuple[float, ...], spacing: tuple[float, ...], levels: int) -> list[list[int]]:
    """Strides between levels: an axis is halved while its voxels are no longer than twice the shortest ones.

    Args:
        patch: Voxels of a patch.
        spacing: Sides of a voxel in mm.
        levels: Most levels.
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
    """A patch of at most ``most`` voxels in the proportions of a scan of ``shape``; the whole scan where it fits."""
    sides = [max(1, round(n)) for n in shape]
    while math.prod(sides) > most and max(sides) > 1:
        # The axis that is still the most whole gives way, as in nnU-Net.
        longest = max((a for a in range(3) if sides[a] > 1), key=lambda axis: (sides[axis] / shape[axis], sides[axis]))
        sides[longest] = min(sides[longest] - 1, int(0.95 * sides[longest]))
    x, y, z = sides
    return (x, y, z)


def write_decisions(decisions: tuple[RecipeDecision, ...], file: Path) -> None:
    """Keep what was decided, and why, as JSON."""
    text = json.dumps([asdict(decision) for decision in decisions], indent=1)
    replace_file(file, f"{text}\n".encode())


class _Choices:
    """The document as it is decided key by key, and what the rules look at."""

    def __init__(self, document: dict[str, Any], facts: DatasetFacts, machine: MachineFacts) -> None:
        self.document, self.facts, self.machine = document, facts, machine
        self.size = self._size()

    def _size(self) -> NetworkSize:
        """The size that the recipe names, else the largest that the machine carries."""
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
        """Sides in mm of the voxels of the network's grid, as far as it is decided; else the median scan's."""
        given = read_key(self.document, "preparation.spacing")
        return tuple(given) if isinstance(given, list | tuple) else self.facts.fingerprint.spacing.median

    @property
    def shape(self) -> tuple[float, ...]:
        """Voxels of the median scan on the network's grid."""
        told = self.facts.fingerprint
        return tuple(
            n * own / mm for n, own, mm in zip(told.shape.median, told.spacing.median, self.spacing, strict=True)
        )

    @property
    def patch(self) -> tuple[float, ...]:
        """The patch that the recipe names, else the one that suits."""
        given = self.document.get("patch", AUTO)
        return tuple(given) if isinstance(given, list | tuple) else choose_patch(self.shape, self.size.patch)


def _method(chosen: _Choices) -> tuple[str, str]:
    if not chosen.facts.unlabelled:
        return "supervised", "every scan is outlined, so there is nothing to learn from without outlines"
    return "supervised", "with such a student no method that keeps one network was surely better (docs/results/methods)"


def _spacing(chosen: _Choices) -> tuple[Any, str]:
    told = chosen.facts.fingerprint.spacing
    if all(high <= low * (1 + SPACING_TOLERANCE) for low, high in zip(told.minimum, told.maximum, strict=True)):
        return "own", "all scans have voxels of the same size"
    median = [float(v) for v in told.median]
    thick = max(range(3), key=lambda axis: median[axis])
    others = min(v for axis, v in enumerate(median) if axis != thick)
    if median[thick] > ANISOTROPIC * others and told.minimum[thick] < median[thick]:
        # Between the thinnest slices and the median ones: nnU-Net takes the tenth percentile along this axis.
        median[thick] = max(others, float(f"{math.sqrt(told.minimum[thick] * median[thick]):.4g}"))
        return median, "the median of the scans; along the axis of thick slices finer, so that thin ones are not lost"
    return median, "the median of the scans, whose voxels differ in size"


def _intensity(chosen: _Choices) -> tuple[list[dict[str, Any]], str]:
    found, words = [], []
    for modality, (low, high) in zip(chosen.facts.modalities, chosen.facts.foreground, strict=True):
        if modality == "CT" and low < high:
            found.append({"clip": [low, high], "scale": "window"})
            words.append(f"CT has units, so values between {low:g} and {high:g} HU (inside the outlines) become 0 to 1")
        else:
            found.append({"scale": "zscore"})
            words.append(f"{modality or 'an unknown modality'} has no units, so each scan is normalised by itself")
    alike = all(one == found[0] for one in found)
    return (found[:1] if alike else found), "; ".join(dict.fromkeys(words))


def _student(chosen: _Choices) -> tuple[dict[str, Any], str]:
    size = chosen.size
    steps = choose_strides(chosen.patch, chosen.spacing, len(size.channels))
    if size.residual:
        # DynUNet's first level is at full resolution by itself.
        channels = list(size.channels[: len(steps) + 1])
        if len(channels) < 3:
            return _plain(size, steps), f"{_why(chosen)}; the scans allow {len(steps)} halving(s) only"
        return {"kind": "dynunet", "channels": channels, "strides": steps, "residual": True}, _why(chosen)
    return _plain(size, steps), _why(chosen)


def _plain(size: NetworkSize, steps: list[list[int]]) -> dict[str, Any]:
    """A UNet whose first level keeps the resolution."""
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
        return f"the recipe names the size {size.name}; levels and strides follow patch and spacing"
    if chosen.machine.gpu is None:
        return f"size {size.name}: training is on a processor; a level at full resolution is worth its time"
    return f"size {size.name}: {chosen.machine}; levels and strides follow patch and spacing"


def _patch(chosen: _Choices) -> tuple[list[int], str]:
    found = choose_patch(chosen.shape, chosen.size.patch)
    whole = all(p >= n - 0.5 for p, n in zip(found, chosen.shape, strict=True))
    words = "a scan of median size" if whole else f"of the proportions of a scan, within {chosen.size.patch:,} voxels"
    return list(found), f"{words} (size {chosen.size.name})"


def _batch(chosen: _Choices) -> tuple[int, str]:
    return 4, "two labelled and two unlabelled patches, which every method can use"


def _updates(chosen: _Choices) -> tuple[int, str]:
    return UPDATES[chosen.size.name], f"usual for size {chosen.size.name}; --budget takes a time instead"


def _precision(chosen: _Choices) -> tuple[str, str]:
    if chosen.machine.gpu is None:
        return "fp32", "processors gain nothing from less"
    if chosen.machine.bf16:
        return "bf16", "the GPU computes in it, with the range of fp32"
    return "fp16", "the GPU has no bf16"


def _memory_format(chosen: _Choices) -> tuple[str, str]:
    if chosen.machine.gpu is None:
        return "channels_last", "convolutions on a processor then need no conversion of their values"
    return "contiguous", "the other order was not measured on a GPU"


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
    words = "what helped in docs/results/student, deformations in proportion to the patch; nothing is mirrored, since"
    return found, f"{words} a one-sided organ would come out on either side"


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
}


def _is_open(key: str, value: Any) -> bool:
    if key == "student" and isinstance(value, str) and value != AUTO:
        if value not in NETWORK_SIZES:
            raise RecipeError(
                f"In the recipe, student: {value!r} is no size; there are {', '.join([AUTO, *NETWORK_SIZES])}."
            )
        return True
    return bool(value == AUTO)


def read_key(document: Mapping[str, Any], key: str) -> Any:
    """The value of a key such as ``preparation.spacing``; None where there is none."""
    place: Any = document
    for part in key.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def write_key(document: dict[str, Any], key: str, value: Any) -> None:
    """Give a key such as ``preparation.spacing`` a value."""
    *sections, last = key.split(".")
    place = document
    for part in sections:
        inner = place.get(part)
        place[part] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[part]
    place[last] = value


def _copied(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in document.items()}
