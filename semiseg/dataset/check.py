"""Checks of a dataset before training (``semiseg data check``).

With a split, only the labels that the split opens are read. Every image is read, because a scan that is in the training
list and, under another name, in the test list makes every metric too good.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import nibabel.orientations as nio
import numpy as np
from numpy.typing import NDArray

from semiseg.dataset.dataset_json import abbreviate_ids
from semiseg.dataset.folder import Case, Dataset, grid_difference
from semiseg.dataset.split import Split
from semiseg.errors import VolumeError
from semiseg.volumes.image_files import read_image_file, split_channels
from semiseg.volumes.nifti import read_labels
from semiseg.volumes.volume import Volume, reorient

Severity = Literal["error", "warning"]
FindingKind = Literal["file", "grid", "labels", "content", "duplicate", "segments", "spacing", "split"]

SPACING_RATIO = 2.0
"""Factor between a scan's spacing along an anatomical axis and the median from which on a warning is given."""


@dataclass(frozen=True)
class DatasetFinding:
    """A problem to correct (error) or to review (warning); ``case`` is None if it concerns the whole dataset."""

    severity: Severity
    kind: FindingKind
    case: str | None
    sentence: str


@dataclass(frozen=True)
class _Facts:
    """Facts about one scan, including those that can only be checked against the other scans."""

    case: str
    findings: tuple[DatasetFinding, ...]
    digest: str | None = None
    spacing: tuple[float, float, float] | None = None  # along R, A, S
    voxels_of: Mapping[int, int] | None = field(default=None)  # label value -> voxels; None: label not opened


def check_dataset(
    dataset: Dataset,
    split: Split | None = None,
    *,
    all_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[DatasetFinding]:
    """Read every image and the opened labels of a dataset and report problems.

    Problems of a scan are: files that are missing, unreadable, contain NaN or another number of channels; an image and
    label of unequal shape or affine; labels that are not integers or not in ``dataset.json``; a constant image; an
    empty label. A header that contradicts itself or does not distinguish left from right is a warning. Problems of the
    dataset are: the same voxels under two ids; a segment that no labelled scan contains; an unusual spacing.

    Args:
        dataset: The dataset.
        split: Split that determines which labels are opened; without one all labels are opened.
        all_labels: If True, open all labels in spite of the split.
        progress: Called with (scans done, scans in total).

    Returns:
        Errors, then warnings, each in the order of the scans.
    """
    open_labels = set(dataset.cases) if split is None or all_labels else _opened_by(split)
    facts = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda case: _read(dataset, case, case.id in open_labels), dataset.cases.values())
        for done, one in enumerate(read, 1):
            facts.append(one)
            if progress:
                progress(done, len(dataset.cases))
    findings = [finding for one in facts for finding in one.findings]
    findings += _judges_without_label(dataset, split)
    findings += _duplicates(facts, split)
    findings += _absent_segments(dataset, facts, split)
    findings += _odd_spacings(facts)
    return sorted(findings, key=lambda f: f.severity != "error")


def _opened_by(split: Split) -> set[str]:
    return {*split.labelled, *split.validation, *split.test, *split.development}


def _read(dataset: Dataset, case: Case, open_label: bool) -> _Facts:
    if not case.image.is_file():
        return _Facts(case.id, (DatasetFinding("error", "file", case.id, f"The image {case.image} does not exist."),))
    try:
        stored = read_image_file(case.image)
        channels = split_channels(case.image, stored, dataset.channels)
    except VolumeError as error:
        return _Facts(case.id, (DatasetFinding("error", "file", case.id, str(error)),))
    image = next(iter(channels.values()))
    findings = [*_constant_channels(case, channels)]
    # Two constant images of the same size have equal voxels but need not be the same scan.
    digest = None if findings else _digest(channels)
    findings += [
        DatasetFinding("warning", "file", case.id, f"{case.image}: {remark.text}") for remark in stored.warnings
    ]
    spacing = _spacing_ras(image)
    if case.label is None or not open_label:
        return _Facts(case.id, tuple(findings), digest, spacing)
    if not case.label.is_file():
        findings.append(DatasetFinding("error", "file", case.id, f"The label {case.label} does not exist."))
        return _Facts(case.id, tuple(findings), digest, spacing)
    try:
        label = read_labels(case.label)
    except VolumeError as error:
        findings.append(DatasetFinding("error", "labels", case.id, str(error)))
        return _Facts(case.id, tuple(findings), digest, spacing)
    voxels_of = _count(label.array)
    findings += _grid(case, image, label)
    findings += _values(dataset, case, voxels_of)
    return _Facts(case.id, tuple(findings), digest, spacing, voxels_of)


def _constant_channels(case: Case, channels: Mapping[str, Volume]) -> Iterator[DatasetFinding]:
    for name, volume in channels.items():
        low, high = volume.array.min(), volume.array.max()
        if low == high:
            sentence = f"{case.image}: every voxel of channel '{name}' is {float(low):g}, so the channel shows nothing."
            yield DatasetFinding("error", "content", case.id, sentence)


def _grid(case: Case, image: Volume, label: Volume) -> Iterator[DatasetFinding]:
    problem = grid_difference(image, label)
    if problem:
        yield DatasetFinding(
            "error", "grid", case.id, f"{case.label} does not lie on the grid of its image: {problem}."
        )


def _count(labels: NDArray[np.int32]) -> dict[int, int]:
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < 2**16:  # np.unique sorts all voxels, which takes twenty times as long
        counts = np.bincount(labels.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _values(dataset: Dataset, case: Case, voxels_of: Mapping[int, int]) -> Iterator[DatasetFinding]:
    if set(voxels_of) == {0}:
        sentence = f"{case.label} contains no segment: every voxel is background. Check that this is intended."
        yield DatasetFinding("warning", "labels", case.id, sentence)
    known = set(dataset.known_values)
    strange = {v: n for v, n in voxels_of.items() if v not in known}
    if dataset.segments and strange:
        found = ", ".join(f"{value} ({count} voxels)" for value, count in list(strange.items())[:8])
        more = f" and {len(strange) - 8} other values" if len(strange) > 8 else ""
        allowed = ", ".join(["0 background", *(s.display_name for s in dataset.segments)])
        sentence = f"{case.label} contains label {found}{more}; dataset.json lists {allowed}."
        yield DatasetFinding("error", "labels", case.id, sentence)


def _digest(channels: Mapping[str, Volume]) -> str:
    """Return a hash of the image that does not depend on the file's axis order and number type."""
    sum_ = hashlib.blake2b(digest_size=16)
    for volume in channels.values():
        array, _ = reorient(volume.array, volume.affine, "RAS")
        sum_.update(str(array.shape).encode())
        sum_.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return sum_.hexdigest()


def _spacing_ras(volume: Volume) -> tuple[float, float, float]:
    along = nio.io_orientation(volume.affine)[:, 0].astype(int)
    out = [0.0, 0.0, 0.0]
    for axis, direction in enumerate(along):
        out[direction] = volume.spacing[axis]
    return (out[0], out[1], out[2])


def _judges_without_label(dataset: Dataset, split: Split | None) -> Iterator[DatasetFinding]:
    for pool in ("test", "development") if split else ():
        for case_id in split.pools()[pool] if split else ():
            if dataset.cases[case_id].label is None:  # a named label that does not exist is reported as a missing file
                sentence = f"'{case_id}' is a {pool} scan without a label file, so it cannot be evaluated."
                yield DatasetFinding("error", "split", case_id, sentence)


def _duplicates(facts: list[_Facts], split: Split | None) -> Iterator[DatasetFinding]:
    same: dict[str, list[str]] = {}
    for one in facts:
        if one.digest:
            same.setdefault(one.digest, []).append(one.case)
    pool_of = {i: pool for pool, ids in split.pools().items() for i in ids} if split else {}
    for ids in same.values():
        if len(ids) < 2:
            continue
        sentence = f"{abbreviate_ids(ids)} hold the same voxels under different names; keep one of them."
        pools = {pool_of[i] for i in ids if i in pool_of}
        if len(pools) > 1 and pools & {"test", "development", "validation"}:
            where = ", ".join(f"'{i}' in {pool_of[i]}" for i in ids if i in pool_of)
            sentence += f" The split has {where}, so an evaluation scan is also in another list of the split."
        yield DatasetFinding("error", "duplicate", ids[0], sentence)


def _absent_segments(dataset: Dataset, facts: list[_Facts], split: Split | None) -> Iterator[DatasetFinding]:
    teaching = set(split.labelled) if split else set(dataset.cases)
    opened = [one.voxels_of for one in facts if one.case in teaching and one.voxels_of is not None]
    found = Counter(value for voxels_of in opened for value in voxels_of)
    if not dataset.segments and opened:
        values = ", ".join(f"{value} (in {count} scans)" for value, count in sorted(found.items()))
        sentence = f"{dataset.folder} has no dataset.json that names the label values; the labels contain {values}."
        yield DatasetFinding("warning", "segments", None, sentence)
    for segment in dataset.segments:
        if not any(found[value] for value in segment.reference_values):
            sentence = f"None of the {len(opened)} labelled scans contains the segment {segment.display_name}."
            yield DatasetFinding("error", "segments", None, sentence)


def _odd_spacings(facts: list[_Facts]) -> Iterator[DatasetFinding]:
    known = [(one.case, one.spacing) for one in facts if one.spacing]
    if len(known) < 3:
        return
    median = np.median([spacing for _, spacing in known], axis=0)
    for case_id, spacing in known:
        ratio = np.asarray(spacing) / median
        if (ratio >= SPACING_RATIO).any() or (ratio <= 1 / SPACING_RATIO).any():
            sentence = (
                f"The spacing of '{case_id}' is {_mm(spacing)} mm (left-right, back-front, foot-head); the median of "
                f"the dataset is {_mm(median)} mm."
            )
            yield DatasetFinding("warning", "spacing", case_id, sentence)


def _mm(values: tuple[float, ...] | NDArray[np.float64]) -> str:
    return " x ".join(f"{float(v):.3g}" for v in values)
