"""Labels of whole scans by atlases: labelled scans are registered onto a scan, and their labels vote in each voxel.

The vote of an atlas weighs exp(-k d) where d is the mean squared difference of the locally normalised images around the
voxel (locally weighted fusion: Artaechevarria et al., "Combination strategies in multi-atlas image segmentation", IEEE
TMI 2009; Sabuncu et al., "A generative model for image segmentation based on label fusion", IEEE TMI 2010). The result
is soft: the share of the votes for each channel, and as weight of a voxel the weight of its best vote.

The labelled scans judge the atlases: each is labelled by the others, and the Dice says how far registration can be
trusted on this anatomy, which k is best, and whether one of the atlases is unlike the others.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.system.durable_files import atomic_file
from trainer.cases import IGNORE, PreparedCase
from trainer.mapped_arrays import ArrayFile, by_name
from trainer.registration import (
    Scan,
    as_image,
    as_scan,
    identity,
    inverse_inconsistency,
    local_mean,
    register,
    warp,
    work_spacing,
)
from trainer.soft_labels import to_bytes

LAYOUT = 1  # raise when the labels of the same scans become others
SHARPNESS = (1.0, 2.0, 4.0, 8.0)  # the values of k that the labelled scans choose from
SHARPNESS_UNJUDGED = 2.0  # k where there are too few of them to choose
AROUND = 1.5  # shortest voxel sides: standard deviation of the Gaussian that d is a mean under


@dataclass(frozen=True)
class Channels:
    """How codes become channels.

    Attributes:
        segments: Number of segments.
        overlapping: Codes are bits of regions, and there is no channel for the background.
    """

    segments: int
    overlapping: bool

    def masks(self, codes: NDArray[np.uint8], ignores: bool) -> NDArray[np.float32]:
        """A map (segments + 1, X, Y, Z): each segment, and last where the code is known."""
        known = codes != IGNORE if ignores else np.ones(codes.shape, bool)
        wanted = range(self.segments)
        of = [((codes >> k) & 1 if self.overlapping else codes == k + 1) & known for k in wanted]
        return np.stack([*of, known]).astype(np.float32)

    def of(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (C, X, Y, Z) of the channels from those of the segments."""
        if self.overlapping:
            return segments
        return np.concatenate([np.clip(1.0 - segments.sum(axis=0, keepdims=True), 0.0, 1.0), segments])


@dataclass(frozen=True)
class Atlas:
    """A labelled scan.

    Attributes:
        name: Its name.
        scan: Its image.
        masks: Images of :meth:`Channels.masks`, on the grid of ``scan.own``.
    """

    name: str
    scan: Scan
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class Votes:
    """What registered atlases say of a scan.

    Attributes:
        masks: (atlases, segments + 1, X, Y, Z), see :meth:`Channels.masks`.
        differences: d of each atlas, (atlases, X, Y, Z).
    """

    masks: NDArray[np.float32]
    differences: NDArray[np.float32]

    def of(self, atlases: Sequence[int]) -> Votes:
        """The votes of some of the atlases."""
        chosen = list(atlases)
        return Votes(self.masks[chosen], self.differences[chosen])

    def fused(self, sharpness: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities (segments, X, Y, Z) and the weight (X, Y, Z) of the best vote of each voxel.

        Where no atlas knows anything the probabilities and the weight are zero.
        """
        weights = np.exp(-sharpness * self.differences) * self.masks[:, -1]
        total = weights.sum(axis=0)
        segments = np.einsum("a...,ac...->c...", weights, self.masks[:, :-1]) / np.maximum(total, 1e-12)
        return segments.astype(np.float32), weights.max(axis=0)


@dataclass(frozen=True)
class Judgement:
    """What the labelled scans say of the atlases.

    Attributes:
        dice: Mean Dice of each labelled scan labelled by all others, over its segments; empty for a single one.
        alone: Mean Dice of the other labelled scans labelled by each one alone.
        sharpness: The best k.
        inconsistency: Median distance in mm of a point from where the way to another scan and back leads it.
    """

    dice: dict[str, float]
    alone: dict[str, float]
    sharpness: float
    inconsistency: float

    @property
    def mean(self) -> float:
        """Mean Dice over the labelled scans; NaN for a single one."""
        return float(np.mean(list(self.dice.values()))) if self.dice else float("nan")


@dataclass(frozen=True)
class Atlases:
    """Labelled scans that label others.

    Attributes:
        cases: The labelled scans, prepared.
        channels: How their codes become channels.
        work: Side in mm of the voxels on which scans are registered.
        processes: Number of processes that work at a time.
    """

    cases: tuple[PreparedCase, ...]
    channels: Channels
    work: float
    processes: int = 1

    @classmethod
    def of(
        cls, cases: Sequence[PreparedCase], others: Sequence[PreparedCase], channels: Channels, processes: int
    ) -> Atlases:
        """Atlases of labelled ``cases`` for ``others``."""
        every = [*cases, *others]
        work = work_spacing([case.shape for case in every], [case.spacing for case in every])
        return cls(tuple(cases), channels, work, processes)

    def without(self, names: Sequence[str]) -> Atlases:
        """The same without some of the labelled scans."""
        kept = tuple(case for case in self.cases if case.case_id not in names)
        return Atlases(kept, self.channels, self.work, self.processes)

    def judged(self) -> Iterator[tuple[str, NDArray[np.float64], float]]:
        """Each labelled scan, labelled by the others.

        Yields:
            Its name; the Dice (atlases + 1, len(SHARPNESS)), of each atlas alone (NaN for itself) and last of all
            others together; the distance in mm of points from where the way to another scan and back leads them.
        """
        yield from self._spread(_judge, range(len(self.cases)))

    def labelled(
        self, cases: Sequence[PreparedCase], sharpness: float, cache: Path
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Names and soft labels (:mod:`trainer.soft_labels`) of scans, in their order; ``cache`` keeps them."""
        files = {case.case_id: self._file(case, sharpness, cache) for case in cases}
        missing = [(case, sharpness) for case in cases if not _is_there(files[case.case_id])]
        made = self._spread(_label, missing)
        wanted = {case.case_id for case, _ in missing}
        for case in cases:
            file = files[case.case_id]
            if case.case_id not in wanted:
                assert file is not None
                yield case.case_id, np.load(file)
                continue
            name, labels = next(made)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(file) as stream:
                    np.save(stream, labels)
            yield name, labels

    def _file(self, case: PreparedCase, sharpness: float, cache: Path) -> Path | None:
        """Where the labels of a scan are kept; None for scans that have no files, by which they are known."""
        arrays = [case.image, *(array for atlas in self.cases for array in (atlas.image, atlas.labels))]
        names = [by_name(array) for array in arrays]
        if not all(isinstance(name, ArrayFile) for name in names):
            return None
        # The name of a file of prepared scans is a hash of what is in it.
        told = [LAYOUT, *(name.path.name for name in names), sharpness, self.work, vars(self.channels)]
        return cache / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}-atlas.npy"

    def _spread(self, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        """The results of a function for each item, computed by as many processes as may work at a time."""
        if self.processes == 1 or len(items) < 2:
            _start(self)
            yield from map(work, items)
            return
        # A fork of a process that computes with several threads may hang.
        method = "spawn" if multiprocessing.get_start_method(allow_none=True) in (None, "fork") else None
        context = multiprocessing.get_context(method)
        count = min(self.processes, len(items))
        with ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(self,)) as pool:
            yield from pool.map(work, items)


def judgement(names: Sequence[str], found: Sequence[tuple[str, NDArray[np.float64], float]]) -> Judgement:
    """What :meth:`Atlases.judged` found, for atlases called ``names``."""
    if len(names) < 2:
        return Judgement({}, {}, SHARPNESS_UNJUDGED, float("nan"))
    table = np.stack([dice for _, dice, _ in found])  # (scans, atlases + 1, sharpness)
    best = int(np.argmax(np.nanmean(table[:, -1], axis=0)))
    alone = np.nanmean(table[:, :-1, best], axis=0)
    return Judgement(
        dice={name: float(v) for (name, *_), v in zip(found, table[:, -1, best], strict=True)},
        alone={name: float(v) for name, v in zip(names, alone, strict=True)},
        sharpness=SHARPNESS[best],
        inconsistency=float(np.median([mm for *_, mm in found])),
    )


def _is_there(file: Path | None) -> bool:
    return file is not None and file.is_file()


_ATLASES: tuple[Atlases, tuple[Atlas, ...]] | None = None
"""Those of this process, prepared once."""


def _start(atlases: Atlases) -> None:
    global _ATLASES
    _ATLASES = (atlases, tuple(_prepared(atlases, case) for case in atlases.cases))


def _started() -> tuple[Atlases, tuple[Atlas, ...]]:
    assert _ATLASES is not None
    return _ATLASES


def _prepared(atlases: Atlases, case: PreparedCase) -> Atlas:
    assert case.labels is not None
    masks = atlases.channels.masks(np.asarray(case.labels), case.ignores)
    return Atlas(case.case_id, _scan(atlases, case), tuple(as_image(mask, case.spacing) for mask in masks))


def _scan(atlases: Atlases, case: PreparedCase) -> Scan:
    return as_scan(np.asarray(case.image[0]), case.spacing, atlases.work)


def _votes(scan: Scan, case: PreparedCase, registered: Sequence[tuple[Atlas, Any]]) -> Votes:
    own = warp(scan.local, scan.own, identity())
    masks, differences = [], []
    for atlas, transform in registered:
        masks.append(np.stack([warp(mask, scan.own, transform) for mask in atlas.masks]))
        away = (own - warp(atlas.scan.local, scan.own, transform)) ** 2
        differences.append(local_mean(away, case.spacing, AROUND * min(case.spacing)))
    return Votes(np.stack(masks), np.stack(differences))


def _label(item: tuple[PreparedCase, float]) -> tuple[str, NDArray[np.uint8]]:
    case, sharpness = item
    atlases, prepared = _started()
    scan = _scan(atlases, case)
    votes = _votes(scan, case, [(atlas, register(scan, atlas.scan)) for atlas in prepared])
    segments, weights = votes.fused(sharpness)
    return case.case_id, to_bytes(atlases.channels.of(segments), weights)


def _judge(index: int) -> tuple[str, NDArray[np.float64], float]:
    atlases, prepared = _started()
    own, case = prepared[index], atlases.cases[index]
    others = [k for k in range(len(prepared)) if k != index]
    there = [register(own.scan, prepared[k].scan) for k in others]
    # The way back from one of the others: over all scans that is enough for a median, and the way back takes as long.
    back = register(prepared[others[0]].scan, own.scan)
    away = inverse_inconsistency(there[0], back, own.scan)
    assert case.labels is not None
    truth = atlases.channels.masks(np.asarray(case.labels), case.ignores)
    votes = _votes(own.scan, case, [(prepared[k], transform) for k, transform in zip(others, there, strict=True)])
    dice = np.full((len(prepared) + 1, len(SHARPNESS)), np.nan)
    for column, sharpness in enumerate(SHARPNESS):
        dice[-1, column] = _mean_dice(votes.fused(sharpness)[0], truth)
        for place, k in enumerate(others):
            dice[k, column] = _mean_dice(votes.of([place]).fused(sharpness)[0], truth)
    return case.case_id, dice, away


def _mean_dice(segments: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Mean Dice of the segments that the outlines hold, over the voxels that somebody outlined; NaN for none."""
    known = truth[-1] > 0
    found = []
    for soft, wanted in zip(segments, truth[:-1], strict=True):
        mask, other = (soft >= 0.5) & known, wanted > 0
        if other.any():
            found.append(2.0 * (mask & other).sum() / (mask.sum() + other.sum()))
    return float(np.mean(found)) if found else float("nan")
