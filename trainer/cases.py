"""The training scans after preprocessing, on disk and memory-mapped: computed once, read patch by patch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.bundle import sha256_of
from semiseg.bundle.preprocessing import Preprocessing
from semiseg.dataset import Case, Dataset, read_channels, read_reference
from semiseg.errors import SemisegError
from semiseg.volumes.atomic_file import atomic_file
from trainer.errors import RecipeError

LAYOUT = 1  # raise when what is stored, or how, changes
PLACES = 2000  # voxels remembered per segment, to place patches on foreground


@dataclass(frozen=True)
class PreparedCase:
    """One preprocessed scan.

    ``image`` is a memory-mapped float32 (C, X, Y, Z); ``labels`` a memory-mapped uint8 (X, Y, Z) for the scans whose
    labels may be opened, else None; ``places`` are voxels (N, 3) of each segment present in the labels.
    """

    case_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    places: tuple[NDArray[np.int32], ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z of the network's grid."""
        x, y, z = self.image.shape[1:]
        return (x, y, z)


def prepare_cases(
    dataset: Dataset,
    labelled: Iterable[str],
    unlabelled: Iterable[str],
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
            out[case_id] = _prepared(dataset, case, case_id in with_labels, preprocessing, cache)
        except SemisegError as error:
            raise RecipeError(f"Case {case_id}: {error}") from error
        if progress is not None:
            progress(done, len(ids))
    return out


def _prepared(dataset: Dataset, case: Case, labelled: bool, preprocessing: Preprocessing, cache: Path) -> PreparedCase:
    image_key = _key(sha256_of(case.image), preprocessing.model_dump_json(), list(dataset.channels))
    image_file = cache / f"{image_key}-image.npy"
    label_file: Path | None = None
    if labelled:
        if case.label is None:
            raise RecipeError("it is named as labelled and has no label file.")
        values = [s.label for s in dataset.segments]
        label_file = cache / f"{_key(image_key, sha256_of(case.label), values)}-labels.npy"
    if not image_file.exists() or (label_file is not None and not label_file.exists()):
        channels = read_channels(case, dataset.channels)
        prepared = preprocessing.apply(channels)
        _save(image_file, prepared.array)
        if label_file is not None:
            reference = read_reference(case, next(iter(channels.values())))
            labels = preprocessing.apply_labels(reference.array, prepared)
            _save(label_file, as_classes(labels, [s.label for s in dataset.segments]))
    classes = None if label_file is None else np.load(label_file, mmap_mode="r")
    return PreparedCase(
        case_id=case.id,
        image=np.load(image_file, mmap_mode="r"),
        labels=classes,
        places=() if classes is None else places_of(np.asarray(classes), len(dataset.segments)),
    )


def places_of(classes: NDArray[np.uint8], segments: int) -> tuple[NDArray[np.int32], ...]:
    """Up to :data:`PLACES` evenly picked voxels (N, 3) of each of the classes 1..segments that is present."""
    out = []
    for index in range(1, segments + 1):
        found = np.argwhere(classes == index)
        if len(found):
            pick = np.linspace(0, len(found) - 1, min(PLACES, len(found))).astype(int)
            out.append(found[pick].astype(np.int32))
    return tuple(out)


def as_classes(labels: NDArray[Any], values: list[int]) -> NDArray[np.uint8]:
    """Label values of the dataset -> 0 for background, 1.. for the segments in order; other values are background."""
    out = np.zeros(labels.shape, dtype=np.uint8)
    for index, value in enumerate(values, start=1):
        out[labels == value] = index
    return out


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([LAYOUT, *parts]).encode()).hexdigest()[:32]


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic_file(path) as stream:
        np.save(stream, np.ascontiguousarray(array))
