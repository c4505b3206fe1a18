"""The training scans after preprocessing, on disk and memory-mapped: computed once, read patch by patch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.bundle import sha256_of
from semiseg.bundle.preprocessing import Preprocessing
from semiseg.dataset import Case, Dataset, read_channels, read_reference
from semiseg.errors import SemisegError
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.segmentation import Segment, are_overlapping
from semiseg.volumes.volume import affine_spacing
from trainer.errors import RecipeError
from trainer.mapped_arrays import from_file_reference, map_array, to_file_reference
from trainer.targets import MAX_REGIONS

CACHE_VERSION = 2  # raise when what is stored, or how, changes
IGNORE = 255  # code of a voxel whose label nobody knows
MAX_VOXELS_PER_SEGMENT = 2000  # voxels remembered per segment, to place patches on foreground


@dataclass(frozen=True)
class PreparedCase:
    """One preprocessed scan.

    ``image`` is a memory-mapped float32 (C, X, Y, Z); ``labels`` a memory-mapped uint8 (X, Y, Z) for the scans whose
    labels may be opened, else None (see :func:`encode_labels`); ``places`` are voxels (N, 3) of each segment present in
    the labels; ``ignores`` tells that the code :data:`IGNORE` marks voxels that nobody outlined.
    """

    case_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    segment_voxels: tuple[NDArray[np.int32], ...]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # mm, of the network's grid
    has_ignored_voxels: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: to_file_reference(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: from_file_reference(value) for name, value in state.items()})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z of the network's grid."""
        x, y, z = self.image.shape[1:]
        return (x, y, z)


def prepare_cases(
    dataset: Dataset,
    labelled: Iterable[str],
    unlabelled: Iterable[str],
    segments: tuple[Segment, ...],
    preprocessing: Preprocessing,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PreparedCase]:
    """Preprocess every training scan, or take it from ``cache``, and map it into memory.

    The label file of a case in ``unlabelled`` is never opened.

    Raises:
        RecipeError: a scan cannot be preprocessed; the sentence names it.
    """
    with_labels = tuple(labelled)
    ids = [*with_labels, *unlabelled]
    cache.mkdir(parents=True, exist_ok=True)
    out: dict[str, PreparedCase] = {}
    for done, case_id in enumerate(ids, start=1):
        case = dataset.case(case_id)
        try:
            out[case_id] = _prepared(dataset, case, case_id in with_labels, segments, preprocessing, cache)
        except SemisegError as error:
            raise RecipeError(f"Case {case_id}: {error}") from error
        if progress is not None:
            progress(done, len(ids))
    return out


def _prepared(
    dataset: Dataset,
    case: Case,
    labelled: bool,
    segments: tuple[Segment, ...],
    preprocessing: Preprocessing,
    cache: Path,
) -> PreparedCase:
    image_key = _key(sha256_of(case.image), preprocessing.model_dump_json(), list(dataset.channels))
    image_file = cache / f"{image_key}-image.npy"
    spacing_file = cache / f"{image_key}-spacing.npy"
    label_file: Path | None = None
    if labelled:
        if case.label is None:
            raise RecipeError("it is named as labelled and has no label file.")
        values = [s.reference_values for s in segments]
        unknown = [] if dataset.ignore is None else [dataset.ignore]
        key = _key(image_key, sha256_of(case.label), values, are_overlapping(segments), *unknown)
        label_file = cache / f"{key}-labels.npy"
    if not image_file.exists() or not spacing_file.exists() or (label_file is not None and not label_file.exists()):
        channels = read_channels(case, dataset.channels)
        prepared = preprocessing.apply(channels)
        _save(spacing_file, np.asarray(affine_spacing(prepared.affine)))
        _save(image_file, prepared.array)
        if label_file is not None:
            reference = read_reference(case, next(iter(channels.values())))
            labels = preprocessing.apply_labels(reference.array, prepared)
            _save(label_file, encode_labels(labels, segments, dataset.ignore))
    classes = None if label_file is None else map_array(label_file)
    x, y, z = (float(v) for v in np.load(spacing_file))
    return PreparedCase(
        case_id=case.id,
        image=map_array(image_file),
        labels=classes,
        segment_voxels=() if classes is None else sample_segment_voxels(np.asarray(classes), segments),
        spacing=(x, y, z),
        has_ignored_voxels=classes is not None and dataset.ignore is not None,
    )


def sample_segment_voxels(encoded: NDArray[np.uint8], segments: Sequence[Segment]) -> tuple[NDArray[np.int32], ...]:
    """Up to :data:`MAX_VOXELS_PER_SEGMENT` evenly picked voxels (N, 3) of each segment that is present."""
    out = []
    known = encoded != IGNORE if len(segments) < MAX_REGIONS else np.True_
    for index in range(len(segments)):
        mask = ((encoded >> index) & 1) & known if are_overlapping(segments) else encoded == index + 1
        found = np.argwhere(mask)
        if len(found):
            pick = np.linspace(0, len(found) - 1, min(MAX_VOXELS_PER_SEGMENT, len(found))).astype(int)
            out.append(found[pick].astype(np.int32))
    return tuple(out)


def encode_labels(labels: NDArray[Any], segments: Sequence[Segment], ignore: int | None = None) -> NDArray[np.uint8]:
    """A label map -> one byte a voxel, as :class:`trainer.targets.Targets` reads it.

    Exclusive segments become 0 for the background and 1.. in order; regions become bits, the first one the lowest. The
    value ``ignore`` becomes :data:`IGNORE`.

    Raises:
        RecipeError: eight regions use every code there is.
    """
    if ignore is not None and are_overlapping(segments) and len(segments) >= MAX_REGIONS:
        most = MAX_REGIONS - 1
        raise RecipeError(f"Labels with an ignore value can have {most} regions at most, not {len(segments)}.")
    out = np.zeros(labels.shape, dtype=np.uint8)
    for index, segment in enumerate(segments):
        mask = np.isin(labels, segment.reference_values)
        if are_overlapping(segments):
            out |= mask.astype(np.uint8) << index
        else:
            out[mask] = index + 1
    if ignore is not None:
        out[labels == ignore] = IGNORE
    return out


def segments_without_label(cases: Iterable[PreparedCase], segments: Sequence[Segment]) -> list[str]:
    """Names of the segments that none of the labelled ``cases`` holds."""
    found = [(case.has_ignored_voxels, np.unique(case.labels)) for case in cases if case.labels is not None]
    codes = np.unique(np.concatenate([codes[codes != IGNORE] if ignores else codes for ignores, codes in found]))
    if are_overlapping(segments):
        return [s.name for k, s in enumerate(segments) if not ((codes >> k) & 1).any()]
    return [s.name for k, s in enumerate(segments) if k + 1 not in codes]


def encode_prediction(array: NDArray[Any], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """A prediction (a label map, or masks (K, X, Y, Z) of regions) in the same form."""
    if not are_overlapping(segments):
        return encode_labels(array, segments)
    bits = (2 ** np.arange(len(segments), dtype=np.uint8))[:, None, None, None]
    return np.asarray((array.astype(np.uint8) * bits).sum(axis=0), dtype=np.uint8)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([CACHE_VERSION, *parts]).encode()).hexdigest()[:32]


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write a file of the cache. Its name is a hash of what is in it, so one that is there is the same.

    Two scans of equal voxels share a file, which the first has mapped by then; Windows would not replace it.
    """
    if path.exists():
        return
    with atomic_file(path) as stream:
        np.save(stream, np.ascontiguousarray(array))
