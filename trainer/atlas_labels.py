"""Labels of whole scans by atlases: labelled scans are registered onto a scan, and their labels vote in each voxel.

The vote of an atlas weighs exp(-k d), where d is the mean squared difference of the locally normalised images around
the voxel (locally weighted fusion: Artaechevarria et al., "Combination strategies in multi-atlas image segmentation",
IEEE TMI 2009; Sabuncu et al., "A generative model for image segmentation based on label fusion", IEEE TMI 2010). The
labels that result are soft: the share of the votes for each channel, and a weight that falls with the smallest d where
it is larger than usual among the labelled scans.

The labelled scans judge the atlases (:class:`Judgement`): each is labelled by the others, and the Dice says how far
registration can be trusted on this anatomy, which k is best, and whether one of the atlases is unlike the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from semiseg.system.durable_files import atomic_file, replace_file
from semiseg.system.memory import physical_memory
from trainer.cases import IGNORE, PreparedCase
from trainer.mapped_arrays import ArrayFile, by_name
from trainer.registration import Scan, as_image, as_scan, identity, inverse_inconsistency, local_mean, register, warp
from trainer.registration import work_spacing as spacing_for
from trainer.soft_labels import FULL

LAYOUT = 2  # raise when the labels of the same scans become others
SHARPNESS = (1.0, 2.0, 4.0, 8.0)  # the values of k that the labelled scans choose from
SHARPNESS_UNJUDGED = 2.0  # k where there are too few of them to choose
AROUND = 1.5  # voxels: standard deviation of the Gaussian that d is a mean under
MARGIN = 4.0  # voxels of the grid of registration around what any atlas calls a segment
OUTLIER = 0.2  # of Dice: an atlas that is this much worse than the median one is unlike the others

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Channels:
    """How codes become channels.

    Attributes:
        segments: Number of segments.
        overlapping: Codes are bits of regions, and there is no channel for the background.
    """

    segments: int
    overlapping: bool

    def masks(self, codes: NDArray[np.uint8], ignores: bool) -> Float:
        """A map (segments + 1, X, Y, Z): each segment, and last where the code is known."""
        known = codes != IGNORE if ignores else np.ones(codes.shape, bool)
        wanted = range(self.segments)
        of = [((codes >> k) & 1 if self.overlapping else codes == k + 1) & known for k in wanted]
        return np.stack([*of, known]).astype(np.float32)

    def of(self, segments: Float) -> Float:
        """Probabilities (C, X, Y, Z) of the channels from those of the segments."""
        if self.overlapping:
            return segments
        return np.concatenate([np.clip(1.0 - segments.sum(axis=0, keepdims=True), 0.0, 1.0), segments])

    def decided(self, segments: Float) -> NDArray[np.bool_]:
        """Masks (segments, X, Y, Z) of what probabilities come to."""
        if self.overlapping:
            return np.asarray(segments >= 0.5)
        best = self.of(segments).argmax(axis=0)
        return np.stack([best == k + 1 for k in range(self.segments)])


@dataclass(frozen=True)
class Atlas:
    """A labelled scan, ready to be registered.

    Attributes:
        scan: Its image.
        masks: Images of :meth:`Channels.masks`, on the grid of ``scan.own``.
    """

    scan: Scan
    masks: tuple[Any, ...]


class Fusion:
    """Votes for a part of a scan, taken in one atlas after the other, so that memory does not grow with their number.

    Attributes:
        nearest: Smallest d of each voxel (X, Y, Z) among the atlases that know it; infinite where none does.
    """

    def __init__(self, sharpness: float, segments: int, shape: tuple[int, ...]) -> None:
        """Begin without any vote.

        Args:
            sharpness: k.
            segments: Number of segments.
            shape: Voxels of the part.
        """
        self._sharpness = sharpness
        self._votes: Float = np.zeros((segments, *shape), np.float32)
        self._all: Float = np.zeros(shape, np.float32)
        self._reference: Float = np.full(shape, np.inf, np.float32)  # the k d that the sums are relative to
        self.nearest: Float = np.full(shape, np.inf, np.float32)

    def add(self, masks: Float, difference: Float) -> None:
        """Take in an atlas.

        Args:
            masks: Warped :meth:`Channels.masks` (segments + 1, X, Y, Z).
            difference: d (X, Y, Z).
        """
        known = masks[-1]
        knows = known > 0
        self.nearest = np.where(knows, np.minimum(self.nearest, difference), self.nearest)
        exponent = self._sharpness * difference
        lower = np.where(knows, np.minimum(self._reference, exponent), self._reference)
        # Sums relative to the nearest atlas, so that where all differ much none is lost in rounding.
        with np.errstate(invalid="ignore"):
            kept = np.where(np.isfinite(self._reference), np.exp(lower - self._reference), 0.0).astype(np.float32)
            weight = np.where(knows, np.exp(lower - exponent), 0.0).astype(np.float32)
        self._votes = self._votes * kept + weight * masks[:-1]  # masks are zero where the label is unknown
        self._all = self._all * kept + weight * known
        self._reference = lower

    def segments(self) -> Float:
        """Probabilities (segments, X, Y, Z); zero where no atlas knows anything."""
        return np.asarray(self._votes / np.maximum(self._all, 1e-6), dtype=np.float32)


@dataclass(frozen=True)
class Judged:
    """A labelled scan, labelled by the others.

    Attributes:
        name: Its name.
        alone: Dice of each atlas by itself, over SHARPNESS alike; None for itself, or where there is nothing to judge.
        together: Dice of all others together for each of SHARPNESS; None where there is nothing to judge.
        difference: Median over the scan of the smallest d.
        inconsistency: Distance in mm of points from where the way to another scan and back leads them.
    """

    name: str
    alone: tuple[float | None, ...]
    together: tuple[float, ...] | None
    difference: float
    inconsistency: float


@dataclass(frozen=True)
class Judgement:
    """What the labelled scans say of the atlases.

    Attributes:
        dice: Mean Dice over the labelled scans that hold a segment, each labelled by the others; None where nothing
            could be judged.
        alone: Mean Dice of each atlas by itself on the others; atlases that could not be judged are not in it.
        sharpness: The best k.
        difference: Median over the scans of :attr:`Judged.difference`; None without any.
        inconsistency: Median over the scans of :attr:`Judged.inconsistency`, in mm; None without any.
    """

    dice: float | None
    alone: dict[str, float]
    sharpness: float
    difference: float | None
    inconsistency: float | None

    @classmethod
    def of(cls, names: Sequence[str], found: Sequence[Judged]) -> Judgement:
        """What the scans come to, for atlases called ``names``."""
        tables = [one.together for one in found if one.together is not None]
        alone = {}
        for number, name in enumerate(names):
            values = [value for one in found if (value := one.alone[number]) is not None]
            if values:
                alone[name] = statistics.fmean(values)
        means = np.mean(tables, axis=0) if tables else None
        best = None if means is None else int(np.argmax(means))
        return cls(
            dice=None if means is None or best is None else float(means[best]),
            alone=alone,
            sharpness=SHARPNESS_UNJUDGED if best is None else SHARPNESS[best],
            difference=statistics.median(one.difference for one in found) if found else None,
            inconsistency=statistics.median(one.inconsistency for one in found) if found else None,
        )

    def unlike_the_others(self) -> list[str]:
        """The atlases that label the others much worse than the median one does; at least two are always kept."""
        if len(self.alone) < 3:
            return []
        middle = statistics.median(self.alone.values())
        found = sorted((dice, name) for name, dice in self.alone.items() if dice < middle - OUTLIER)
        return [name for _, name in found[: len(self.alone) - 2]]


@dataclass(frozen=True)
class Atlases:
    """Labelled scans that label others.

    Attributes:
        cases: The labelled scans, prepared.
        channels: How their codes become channels.
        work: Side in mm of the voxels on which scans are registered.
        cache: Folder in which labels and judgements are kept for other runs.
        processes: Most processes that work at a time.
    """

    cases: tuple[PreparedCase, ...]
    channels: Channels
    work: float
    cache: Path
    processes: int = 1

    @classmethod
    def of(
        cls,
        cases: Sequence[PreparedCase],
        others: Sequence[PreparedCase],
        channels: Channels,
        cache: Path,
        processes: int,
    ) -> Atlases:
        """Atlases of labelled ``cases`` for ``others``."""
        every = [*cases, *others]
        work = spacing_for([case.shape for case in every], [case.spacing for case in every])
        # Of the largest scan: the sums of the fusion, a warped atlas, and what they are made of.
        bytes_each = 4 * max(math.prod(case.shape) for case in every) * (2 * channels.segments + 8)
        allowed = max(1, int(0.5 * (physical_memory() or bytes_each) / bytes_each))
        return cls(tuple(cases), channels, work, cache, min(processes, allowed))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labelled scans."""
        return tuple(case.case_id for case in self.cases)

    def without(self, names: Sequence[str]) -> Atlases:
        """The same without some of the labelled scans."""
        kept = tuple(case for case in self.cases if case.case_id not in names)
        return Atlases(kept, self.channels, self.work, self.cache, self.processes)

    def judged(self) -> Iterator[Judged]:
        """Each labelled scan, labelled by the others; nothing for a single one."""
        if len(self.cases) < 2:
            return
        file = self._file("judged", [])
        if file is not None and file.is_file():
            yield from (_judged_of(entry) for entry in json.loads(file.read_text(encoding="utf-8")))
            return
        found = []
        for one in self._spread(_judge, range(len(self.cases))):
            found.append(one)
            yield one
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps([asdict(one) for one in found]).encode())

    def labelled(
        self, cases: Sequence[PreparedCase], sharpness: float, usual: float | None
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Names and soft labels (:mod:`trainer.soft_labels`) of scans, in their order.

        Args:
            cases: The scans.
            sharpness: k.
            usual: A voxel weighs 1 up to this d, and exp(usual - d) above; None takes the median of each scan.
        """
        files = {case.case_id: self._file("atlas", [by_name(case.image), sharpness, usual]) for case in cases}
        made = {name for name, file in files.items() if file is not None and file.is_file()}
        found = self._spread(_label, [(case, sharpness, usual) for case in cases if case.case_id not in made])
        for case in cases:
            file = files[case.case_id]
            if case.case_id in made and file is not None:
                yield case.case_id, np.load(file)
                continue
            name, labels = next(found)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(file) as stream:
                    np.save(stream, labels)
            yield name, labels

    def _file(self, kind: str, told: Sequence[Any]) -> Path | None:
        """Where something is kept; None for scans that have no files, by whose names they are known."""
        arrays = [by_name(array) for case in self.cases for array in (case.image, case.labels)]
        every = [*arrays, *(one for one in told if not isinstance(one, float | None))]
        if not all(isinstance(one, ArrayFile) for one in every):
            return None
        # The name of a file of prepared scans is a hash of what is in it.
        parts = [one.path.name if isinstance(one, ArrayFile) else one for one in (*arrays, *told)]
        version = SimpleITK.Version.VersionString()
        text = json.dumps([LAYOUT, version, parts, self.work, asdict(self.channels)])
        ending = "json" if kind == "judged" else "npy"
        return self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{kind}.{ending}"

    def _spread(self, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        """The results of a function for each item, by as many processes as may work at a time."""
        done = 0
        if self.processes > 1 and len(items) > 1:
            try:
                for result in self._pooled(work, items):
                    yield result
                    done += 1
            except BrokenProcessPool:
                pass  # killed for want of memory, or started by a script that processes cannot import: go on alone
        if done == len(items):
            return
        _start(self)
        try:
            yield from map(work, items[done:])
        finally:
            _PREPARED.clear()

    def _pooled(self, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        # A fork of a process that computes with several threads may hang.
        method = "spawn" if multiprocessing.get_start_method(allow_none=True) in (None, "fork") else None
        context = multiprocessing.get_context(method)
        count = min(self.processes, len(items))
        with ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(self,)) as pool:
            ahead = 2 * count  # results wait here when they are not fetched as fast as they are made
            waiting = [pool.submit(work, item) for item in items[:ahead]]
            for number in range(len(items)):
                yield waiting[number].result()
                if number + ahead < len(items):
                    waiting.append(pool.submit(work, items[number + ahead]))


_PREPARED: list[tuple[Atlases, tuple[Atlas, ...]]] = []
"""The atlases of this process, prepared once; none or one."""


def _start(atlases: Atlases) -> None:
    _PREPARED[:] = [(atlases, tuple(_prepared(atlases, case) for case in atlases.cases))]


def _judged_of(entry: dict[str, Any]) -> Judged:
    together = entry["together"]
    return Judged(
        entry["name"],
        tuple(entry["alone"]),
        None if together is None else tuple(together),
        entry["difference"],
        entry["inconsistency"],
    )


def _prepared(atlases: Atlases, case: PreparedCase) -> Atlas:
    masks = atlases.channels.masks(_codes(case), case.ignores)
    return Atlas(_scan(atlases, case), tuple(as_image(mask, case.spacing) for mask in masks))


def _codes(case: PreparedCase) -> NDArray[np.uint8]:
    assert case.labels is not None
    return np.asarray(case.labels)


def _scan(atlases: Atlases, case: PreparedCase) -> Scan:
    return as_scan(np.asarray(case.image[0]), case.spacing, atlases.work)


class _Registered:
    """Atlases registered onto a scan, as seen in the part of it that any of them calls a segment, and a margin."""

    def __init__(self, atlases: Atlases, scan: Scan, case: PreparedCase, chosen: Sequence[Atlas]) -> None:
        self.transforms = [register(scan, atlas.scan) for atlas in chosen]
        self._scan, self._chosen = scan, chosen
        self._around = AROUND * max(atlases.work, min(case.spacing))
        self._spacing = case.spacing
        # Beyond what anybody calls a segment lies the background, but where a label is unknown, who knows.
        self._unknown = any(one.ignores for one in atlases.cases)
        self.box = self._box(atlases.work, case)
        inside = scan.own[tuple(slice(a, b) for a, b in reversed(self.box))]
        self._own = inside
        self._local = warp(scan.local, inside, identity())

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the part."""
        return tuple(b - a for a, b in self.box)

    def votes(self) -> Iterator[tuple[Float, Float]]:
        """Of each atlas its warped masks (segments + 1, *shape) and d (*shape)."""
        for atlas, transform in zip(self._chosen, self.transforms, strict=True):
            masks = np.stack([warp(mask, self._own, transform) for mask in atlas.masks])
            away = (self._local - warp(atlas.scan.local, self._own, transform)) ** 2
            yield masks, local_mean(away, self._spacing, self._around)

    def _box(self, work: float, case: PreparedCase) -> list[tuple[int, int]]:
        """First voxel of the part along each axis and the one after its last."""
        coarse = self._scan.work
        found = np.zeros(coarse.GetSize()[::-1], bool)
        for atlas, transform in zip(self._chosen, self.transforms, strict=True):
            for mask in atlas.masks[:-1]:
                found |= warp(mask, coarse, transform) > 0.05
        places = np.argwhere(found)
        if not len(places) or self._unknown:
            return [(0, n) for n in case.shape]
        box = []
        for axis, (n, mm) in enumerate(zip(case.shape, case.spacing, strict=True)):
            first, last = places[:, axis].min() - MARGIN, places[:, axis].max() + 1 + MARGIN
            # Both grids have their middle at the origin.
            middle, sides = n / 2.0, found.shape[axis] / 2.0
            low = math.floor(middle + (first - sides) * work / mm)
            high = math.ceil(middle + (last - sides) * work / mm)
            start = min(max(0, low), n - 1)
            box.append((start, min(n, max(high, start + 1))))
        return box


def _label(item: tuple[PreparedCase, float, float | None]) -> tuple[str, NDArray[np.uint8]]:
    case, sharpness, usual = item
    ((atlases, prepared),) = _PREPARED
    channels = atlases.channels
    registered = _Registered(atlases, _scan(atlases, case), case, prepared)
    fusion = Fusion(sharpness, channels.segments, registered.shape)
    for masks, difference in registered.votes():
        fusion.add(masks, difference)
    labels = np.zeros((channels.segments + (not channels.overlapping) + 1, *case.shape), np.uint8)
    # Beyond the part every atlas says the background.
    labels[-1] = FULL
    if not channels.overlapping:
        labels[0] = FULL
    inside = (slice(None), *(slice(a, b) for a, b in registered.box))
    known = np.isfinite(fusion.nearest)
    if usual is None:
        usual = float(np.median(fusion.nearest[known])) if known.any() else 0.0
    weight = np.where(known, np.exp(np.minimum(0.0, usual - fusion.nearest)), 0.0)
    found = np.concatenate([channels.of(fusion.segments()), weight[None].astype(np.float32)])
    labels[inside] = np.rint(np.clip(found, 0.0, 1.0) * FULL)
    labels[-1][inside[1:]] = np.maximum(labels[-1][inside[1:]], known)  # what is known is never rounded away
    return case.case_id, labels


def _judge(index: int) -> Judged:
    ((atlases, prepared),) = _PREPARED
    own, case, channels = prepared[index], atlases.cases[index], atlases.channels
    others = [k for k in range(len(prepared)) if k != index]
    registered = _Registered(atlases, own.scan, case, [prepared[k] for k in others])
    # The way back from one of the others: over all scans that is enough for a median.
    back = register(prepared[others[0]].scan, own.scan)
    away = inverse_inconsistency(registered.transforms[0], back, own.scan)
    truth = channels.masks(_codes(case), case.ignores)
    inside = (slice(None), *(slice(a, b) for a, b in registered.box))
    fusions = [Fusion(sharpness, channels.segments, registered.shape) for sharpness in SHARPNESS]
    alone: list[float | None] = [None] * len(prepared)
    for k, (masks, difference) in zip(others, registered.votes(), strict=True):
        for fusion in fusions:
            fusion.add(masks, difference)
        share = masks[:-1] / np.maximum(masks[-1], 1e-6)
        alone[k] = _mean_dice(channels.decided(share), truth, inside)
    together = [_mean_dice(channels.decided(fusion.segments()), truth, inside) for fusion in fusions]
    nearest = fusions[0].nearest
    known = np.isfinite(nearest)
    return Judged(
        name=case.case_id,
        alone=tuple(alone),
        together=None if any(dice is None for dice in together) else tuple(d for d in together if d is not None),
        difference=float(np.median(nearest[known])) if known.any() else 0.0,
        inconsistency=away,
    )


def _mean_dice(found: NDArray[np.bool_], truth: Float, inside: tuple[slice, ...]) -> float | None:
    """Mean Dice of the segments, over the voxels that somebody outlined.

    A segment that is neither outlined nor found does not count; None where none counts.

    Args:
        found: Masks (segments, *part) of a part of the scan; nothing was found beyond it.
        truth: Outlines (segments + 1, X, Y, Z) of :meth:`Channels.masks`.
        inside: The part.
    """
    known = truth[-1] > 0
    dice = []
    for mask, wanted in zip(found, truth[:-1] > 0, strict=True):
        counted = mask & known[inside[1:]]
        total = int(counted.sum()) + int(wanted.sum())
        if total:
            dice.append(2.0 * int((counted & wanted[inside[1:]]).sum()) / total)
    return float(np.mean(dice)) if dice else None
