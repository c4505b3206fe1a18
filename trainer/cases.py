"""Preprocessed training scans in memory-mapped files: they are computed once and read patch by patch."""

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

CACHE_VERSION = 2  # raise this when the content or format of the stored files changes
IGNORE = 255  # code of a voxel whose label is unknown
MAX_VOXELS_PER_SEGMENT = 2000  # voxels kept per segment, on which patches are placed


@dataclass(frozen=True)
class PreparedCase:
    """One preprocessed scan.

    Attributes:
        case_id: Name of the scan.
        image: Memory-mapped float32 (C, X, Y, Z).
        labels: Memory-mapped uint8 (X, Y, Z), see :func:`encode_labels`; None for scans whose labels may not be opened.
        segment_voxels: Voxels (N, 3) of each segment present in the labels.
        spacing: Voxel spacing of the network's grid in mm.
        has_ignored_voxels: True if the code :data:`IGNORE` marks voxels whose label is unknown.
    """

    case_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    segment_voxels: tuple[NDArray[np.int32], ...]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    has_ignored_voxels: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: to_file_reference(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: from_file_reference(value) for name, value in state.items()})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z of the network's grid."""
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

    The label files of the cases in ``unlabelled`` are never opened.

    Raises:
        RecipeError: A scan cannot be preprocessed; the message names it.
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
            raise RecipeError("The split lists it as labelled, but it has no label file.")
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
    """Return up to :data:`MAX_VOXELS_PER_SEGMENT` evenly spaced voxels (N, 3) of each segment that is present."""
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
    """Encode a label map as one byte per voxel, as :class:`trainer.targets.Targets` expects it.

    Exclusive segments become 1, 2, ... in their order, and the background becomes 0. Regions become bits, the first one
    the lowest. The value ``ignore`` becomes :data:`IGNORE`.

    Raises:
        RecipeError: There are eight regions, which use all codes, so that none is left for ``ignore``.
    """
    if ignore is not None and are_overlapping(segments) and len(segments) >= MAX_REGIONS:
        most = MAX_REGIONS - 1
        raise RecipeError(f"Labels with an ignore value can have at most {most} regions, not {len(segments)}.")
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
    """Return the names of the segments that are in none of the labelled ``cases``."""
    found = [(case.has_ignored_voxels, np.unique(case.labels)) for case in cases if case.labels is not None]
    codes = np.unique(np.concatenate([codes[codes != IGNORE] if ignores else codes for ignores, codes in found]))
    if are_overlapping(segments):
        return [s.name for k, s in enumerate(segments) if not ((codes >> k) & 1).any()]
    return [s.name for k, s in enumerate(segments) if k + 1 not in codes]


def encode_prediction(array: NDArray[Any], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """Encode a prediction (a label map, or masks (K, X, Y, Z) of regions) as :func:`encode_labels` does."""
    if not are_overlapping(segments):
        return encode_labels(array, segments)
    bits = (2 ** np.arange(len(segments), dtype=np.uint8))[:, None, None, None]
    return np.asarray((array.astype(np.uint8) * bits).sum(axis=0), dtype=np.uint8)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([CACHE_VERSION, *parts]).encode()).hexdigest()[:32]


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write a file of the cache, unless it exists: the name is a hash of the content.

    Two scans with equal voxels share a file. It is not written again, since Windows cannot replace a mapped file.
    """
    if path.exists():
        return
    with atomic_file(path) as stream:
        np.save(stream, np.ascontiguousarray(array))
