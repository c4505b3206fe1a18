"""Multi-atlas labelling: labelled scans are registered onto a scan, and their labels are fused in each voxel.

The labels are soft: the share of the votes for each channel (:mod:`trainer.label_fusion`), and a weight that decreases
with the smallest d where this is larger than usual among the labelled scans. The quality of the atlases is estimated by
leave-one-out cross-validation (:mod:`trainer.atlas_quality`): each labelled scan is labelled by the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from semiseg.evaluation.metrics import overlap
from semiseg.system.durable_files import atomic_file, replace_file
from semiseg.system.memory import physical_memory
from trainer.atlas_quality import SHARPNESS, AtlasScore
from trainer.cases import PreparedCase
from trainer.label_channels import FloatArray, LabelChannels
from trainer.label_fusion import LabelFusion
from trainer.mapped_arrays import ArrayFile, to_file_reference
from trainer.registered_atlases import Atlas, RegisteredAtlases
from trainer.registration import (
    RegistrationScan,
    inverse_inconsistency,
    prepare_scan,
    register,
    to_sitk_image,
    working_spacing,
)
from trainer.soft_labels import BYTE_MAX, to_bytes

CACHE_VERSION = 2  # raise this when the labels of the same scans change


@dataclass(frozen=True)
class AtlasSet:
    """Labelled scans with which other scans are labelled.

    Attributes:
        cases: The labelled scans, preprocessed.
        channels: Conversion of label codes to channels.
        work: Side in mm of the voxels on which scans are registered.
        cache: Folder in which labels and cross-validation results are kept for other runs.
        processes: Largest number of processes that run at a time.
    """

    cases: tuple[PreparedCase, ...]
    channels: LabelChannels
    work: float
    cache: Path
    processes: int = 1

    @classmethod
    def from_cases(
        cls,
        cases: Sequence[PreparedCase],
        others: Sequence[PreparedCase],
        channels: LabelChannels,
        cache: Path,
        processes: int,
    ) -> AtlasSet:
        """Create a set from labelled ``cases`` for labelling ``others``."""
        every = [*cases, *others]
        work = working_spacing([case.shape for case in every], [case.spacing for case in every])
        # Memory of a process for the largest scan: the sums of the fusion, a warped atlas, and temporary arrays.
        bytes_each = 4 * max(math.prod(case.shape) for case in every) * (2 * channels.segments + 8)
        allowed = max(1, int(0.5 * (physical_memory() or bytes_each) / bytes_each))
        return cls(tuple(cases), channels, work, cache, min(processes, allowed))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labelled scans."""
        return tuple(case.case_id for case in self.cases)

    def without(self, names: Sequence[str]) -> AtlasSet:
        """Return a copy without some of the labelled scans."""
        kept = tuple(case for case in self.cases if case.case_id not in names)
        return AtlasSet(kept, self.channels, self.work, self.cache, self.processes)

    def cross_validate(self) -> Iterator[AtlasScore]:
        """Label each labelled scan with the others and yield the scores; yields nothing for a single scan."""
        if len(self.cases) < 2:
            return
        file = self._file("judged", [])
        if file is not None and file.is_file():
            yield from (AtlasScore.from_json(entry) for entry in json.loads(file.read_text(encoding="utf-8")))
            return
        found = []
        for one in self._spread(_judge, range(len(self.cases))):
            found.append(one)
            yield one
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps([asdict(one) for one in found]).encode())

    def label_scans(
        self, cases: Sequence[PreparedCase], sharpness: float, usual: float | None
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield names and soft labels (:mod:`trainer.soft_labels`) of scans, in their order.

        Args:
            cases: The scans.
            sharpness: Constant k of :mod:`trainer.label_fusion`.
            usual: A voxel has the weight 1 up to this d, and exp(usual - d) above; None takes the median d of each
                scan.
        """
        files = {case.case_id: self._file("atlas", [to_file_reference(case.image), sharpness, usual]) for case in cases}
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
        """Return the cache file of a result, or None if a scan is not memory-mapped from a file.

        The files of the scans identify them.
        """
        arrays = [to_file_reference(array) for case in self.cases for array in (case.image, case.labels)]
        every = [*arrays, *(one for one in told if not isinstance(one, float | None))]
        if not all(isinstance(one, ArrayFile) for one in every):
            return None
        # The file name of a preprocessed scan is a hash of its content.
        parts = [one.path.name if isinstance(one, ArrayFile) else one for one in (*arrays, *told)]
        version = SimpleITK.Version.VersionString()
        text = json.dumps([CACHE_VERSION, version, parts, self.work, asdict(self.channels)])
        ending = "json" if kind == "judged" else "npy"
        return self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{kind}.{ending}"

    def _spread(self, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        """Yield the results of a function for each item, computed by several processes if possible."""
        done = 0
        if self.processes > 1 and len(items) > 1:
            try:
                for result in self._pooled(work, items):
                    yield result
                    done += 1
            except BrokenProcessPool:
                # A process ran out of memory, or the main script cannot be imported by the processes. Continue in this
                # process.
                pass
        if done == len(items):
            return
        _start(self)
        try:
            yield from map(work, items[done:])
        finally:
            _PREPARED.clear()

    def _pooled(self, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        # Forking a process that has several threads may hang.
        method = "spawn" if multiprocessing.get_start_method(allow_none=True) in (None, "fork") else None
        context = multiprocessing.get_context(method)
        count = min(self.processes, len(items))
        with ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(self,)) as pool:
            ahead = 2 * count  # limits the number of results that wait in memory
            waiting = [pool.submit(work, item) for item in items[:ahead]]
            for number in range(len(items)):
                yield waiting[number].result()
                if number + ahead < len(items):
                    waiting.append(pool.submit(work, items[number + ahead]))


_PREPARED: list[tuple[AtlasSet, tuple[Atlas, ...]]] = []
"""The atlas set of this process with its prepared atlases; empty or one entry."""


def _start(atlases: AtlasSet) -> None:
    _PREPARED[:] = [(atlases, tuple(_prepared(atlases, case) for case in atlases.cases))]


def _prepared(atlases: AtlasSet, case: PreparedCase) -> Atlas:
    masks = atlases.channels.masks(_codes(case), case.has_ignored_voxels)
    return Atlas(
        _scan(atlases, case), tuple(to_sitk_image(mask, case.spacing) for mask in masks), case.has_ignored_voxels
    )


def _codes(case: PreparedCase) -> NDArray[np.uint8]:
    assert case.labels is not None
    return np.asarray(case.labels)


def _scan(atlases: AtlasSet, case: PreparedCase) -> RegistrationScan:
    return prepare_scan(np.asarray(case.image[0]), case.spacing, atlases.work)


def _label(item: tuple[PreparedCase, float, float | None]) -> tuple[str, NDArray[np.uint8]]:
    case, sharpness, usual = item
    ((atlases, prepared),) = _PREPARED
    channels = atlases.channels
    registered = RegisteredAtlases(prepared, _scan(atlases, case), case)
    fusion = LabelFusion(sharpness, channels.segments, registered.shape)
    for masks, difference in registered.votes():
        fusion.add(masks, difference)
    labels = np.zeros((channels.segments + (not channels.overlapping) + 1, *case.shape), np.uint8)
    # Outside this part of the scan, every atlas has the background.
    labels[-1] = BYTE_MAX
    if not channels.overlapping:
        labels[0] = BYTE_MAX
    inside = (slice(None), *(slice(a, b) for a, b in registered.box))
    known = np.isfinite(fusion.nearest)
    if usual is None:
        usual = float(np.median(fusion.nearest[known])) if known.any() else 0.0
    weight = np.where(known, np.exp(np.minimum(0.0, usual - fusion.nearest)), 0.0)
    labels[inside] = to_bytes(channels.from_segments(fusion.segment_probabilities()), weight)
    labels[-1][inside[1:]] = np.maximum(labels[-1][inside[1:]], known)  # known voxels keep a positive weight
    return case.case_id, labels


def _judge(index: int) -> AtlasScore:
    ((atlases, prepared),) = _PREPARED
    own, case, channels = prepared[index], atlases.cases[index], atlases.channels
    others = [k for k in range(len(prepared)) if k != index]
    registered = RegisteredAtlases([prepared[k] for k in others], own.scan, case)
    # One inverse registration for each scan is enough for the median over all scans.
    back = register(prepared[others[0]].scan, own.scan)
    away = inverse_inconsistency(registered.transforms[0], back, own.scan)
    truth = channels.masks(_codes(case), case.has_ignored_voxels)
    inside = (slice(None), *(slice(a, b) for a, b in registered.box))
    fusions = [LabelFusion(sharpness, channels.segments, registered.shape) for sharpness in SHARPNESS]
    alone: list[float | None] = [None] * len(prepared)
    for k, (masks, difference) in zip(others, registered.votes(), strict=True):
        for fusion in fusions:
            fusion.add(masks, difference)
        share = masks[:-1] / np.maximum(masks[-1], 1e-6)
        alone[k] = _mean_dice(channels.decide(share), truth, inside)
    together = [_mean_dice(channels.decide(fusion.segment_probabilities()), truth, inside) for fusion in fusions]
    nearest = fusions[0].nearest
    known = np.isfinite(nearest)
    return AtlasScore(
        name=case.case_id,
        alone=tuple(alone),
        together=None if any(dice is None for dice in together) else tuple(d for d in together if d is not None),
        difference=float(np.median(nearest[known])) if known.any() else 0.0,
        inconsistency=away,
    )


def _mean_dice(found: NDArray[np.bool_], truth: FloatArray, inside: tuple[slice, ...]) -> float | None:
    """Return the mean Dice of the segments, over the voxels with a known label.

    A segment that is in neither mask does not count; the result is None if no segment counts.

    Args:
        found: Predicted masks (segments, *part) of a part of the scan; they are empty outside this part.
        truth: Reference masks (segments + 1, X, Y, Z) from :meth:`LabelChannels.masks`.
        inside: Slices of the part.
    """
    masks = np.zeros((len(found), *truth.shape[1:]), bool)
    masks[inside] = found
    known = truth[-1] > 0
    dice = [overlap(mask & known, wanted > 0)[0] for mask, wanted in zip(masks, truth[:-1], strict=True)]
    counted = [value for value in dice if not math.isnan(value)]
    return float(np.mean(counted)) if counted else None
