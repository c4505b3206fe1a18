"""Evaluation of a model on labelled scans, used by the trainer, the command line and the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.dataset import Case, Dataset, read_channels, read_reference
from semiseg.errors import Cancelled, DatasetError, SemisegError, VolumeError
from semiseg.evaluation.metrics import score
from semiseg.evaluation.result import NO_SCORE, Evaluation, ScoreRow
from semiseg.volumes.nifti import write_segmentation
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume, same_grid

SegmentFunction = Callable[[Mapping[str, Volume]], Segmentation]
"""Function from channels by name to a segmentation on the grid of the first, such as ``Segmenter.segment``."""

Progress = Callable[[int, int, str], None]
"""Callback that receives (scans done, scans in total, id of the last scan)."""


@dataclass(frozen=True)
class _Answer:
    """Prediction and reference of one scan, on one grid."""

    prediction: Segmentation
    reference: NDArray[np.int32]
    seconds: float
    ignore: int | None = None


def evaluate(
    segment: SegmentFunction,
    dataset: Dataset,
    case_ids: Sequence[str],
    *,
    title: str = "",
    notes: Iterable[str] = (),
    progress: Progress | None = None,
    keep: Path | None = None,
) -> Evaluation:
    """Segment each of ``case_ids`` and compare it with its label.

    Segments of model and dataset are matched by name, ignoring case, or by label value if the dataset has no names.
    Segments that only one of the two has are left out, with a note. If a scan cannot be read, segmented or compared,
    the reason is recorded, and the evaluation continues.

    Args:
        segment: Function that segments a scan; see :data:`SegmentFunction`.
        dataset: Dataset of the scans.
        case_ids: Ids of the scans.
        title: Names of the model and the scans, for captions.
        notes: Sentences that belong to the results.
        progress: Callback; see :data:`Progress`.
        keep: Folder for the predicted masks, as ``<scan>.nii.gz``.

    Raises:
        DatasetError: There is no scan, a scan is unknown or has no label file, or no segment matches.
        Cancelled: ``segment`` was cancelled.

    Examples:
        >>> import semiseg
        >>> model, dataset = semiseg.load_model("BUNDLE", threads=1), semiseg.load_dataset("DATA")
        >>> evaluation = semiseg.evaluate(model.segmenter.segment, dataset, list(dataset.cases)[:1])
        >>> print(evaluation.table().markdown().splitlines()[0])
        | Segment | Dice | Jaccard | HD95 (mm) | ASSD (mm) | Scans |
    """
    cases = [dataset.case(case_id) for case_id in case_ids]
    _check_cases(cases)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[ScoreRow]] = {}
    errors: dict[str, str] = {}
    pairs: tuple[tuple[Segment, tuple[int, ...]], ...] = ()
    remarks: tuple[str, ...] = ()
    for done, case in enumerate(cases, 1):
        try:
            answer = _answer(segment, dataset, case, keep)
        except Cancelled:
            raise
        except SemisegError as error:
            errors[case.id] = str(error)
        else:
            pairs, remarks = match_segments(answer.prediction.segments, dataset)
            scores[case.id] = list(_rows(case, answer, pairs))
        if progress:
            progress(done, len(cases), case.id)
    names = tuple(s.name for s, _ in pairs) if pairs else tuple(s.name for s in dataset.segments) or ("all",)
    for case_id, sentence in errors.items():
        scores[case_id] = [ScoreRow(case_id, name, NO_SCORE, error=sentence) for name in names]
    rows = tuple(row for case in cases for row in scores[case.id])
    return Evaluation(title, names, rows, (*notes, *remarks))


def match_segments(
    segments: Sequence[Segment], dataset: Dataset
) -> tuple[tuple[tuple[Segment, tuple[int, ...]], ...], tuple[str, ...]]:
    """Match a model's segments with those of a dataset.

    A region that the dataset does not name is matched by the label values that the model was trained with.

    Returns:
        The matched segments, each with its values in the dataset's label maps, and notes about the others.

    Raises:
        DatasetError: No segment matches.
    """
    if not dataset.segments:
        note = f"{dataset.name} does not name its label values; segments were matched by number."
        return tuple((s, s.reference_values) for s in segments), (note,)
    values_of = {s.name.casefold(): s.reference_values for s in dataset.segments}
    known = set(dataset.label_values)
    for segment in segments:
        if segment.values and known.issuperset(segment.values):
            values_of.setdefault(segment.name.casefold(), segment.values)
    pairs = tuple((s, values_of[s.name.casefold()]) for s in segments if s.name.casefold() in values_of)
    if not pairs:
        raise DatasetError(
            f"The model finds {_names(segments)} and {dataset.folder} outlines {_names(dataset.segments)}: there is "
            "nothing to compare."
        )
    found = {s.name.casefold() for s, _ in pairs}
    covered = {value for _, values in pairs for value in values}
    notes = []
    for sentence, all_of in (
        ("The model also finds {}, which the dataset does not outline.", segments),
        ("The dataset also outlines {}, which the model does not find.", dataset.segments),
    ):
        others = [s for s in all_of if s.name.casefold() not in found and not covered.issuperset(s.reference_values)]
        if others:
            notes.append(sentence.format(_names(others)))
    return pairs, tuple(notes)


def _check_cases(cases: list[Case]) -> None:
    if not cases:
        raise DatasetError("There is no scan to evaluate on.")
    without = [case.id for case in cases if case.label is None]
    if without:
        raise DatasetError(f"{', '.join(without[:5])}: no label file, so there is no reference to compare with.")
    twice = {case.id for case in cases if cases.count(case) > 1}
    if twice:
        raise DatasetError(f"{', '.join(sorted(twice)[:5])}: named twice; a scan may be evaluated only once.")


def _answer(segment: SegmentFunction, dataset: Dataset, case: Case, keep: Path | None) -> _Answer:
    channels = read_channels(case, dataset.channels)
    image = next(iter(channels.values()))
    started = time.perf_counter()
    prediction = segment(channels)
    seconds = time.perf_counter() - started
    if prediction.shape != image.shape or not same_grid(prediction.affine, image.affine, image.shape):
        raise VolumeError(
            f"The segmentation of '{case.id}' has shape {prediction.shape} and does not lie on the scan's own grid "
            f"{image.shape}."
        )
    if keep:
        write_segmentation(keep / f"{case.id}.nii.gz", prediction, like=case.image)
    reference = read_reference(case, image)
    _check_values(dataset, case, reference.array)
    return _Answer(prediction, reference.array, seconds, dataset.ignore)


def _check_values(dataset: Dataset, case: Case, reference: NDArray[np.int32]) -> None:
    """Refuse label values without a name, which would count as background and cause false positives."""
    strange = np.setdiff1d(np.unique(reference), dataset.known_values)
    if dataset.segments and strange.size:
        raise VolumeError(f"{case.label} contains label values that dataset.json does not name: {strange.tolist()}.")


def _rows(case: Case, answer: _Answer, pairs: tuple[tuple[Segment, tuple[int, ...]], ...]) -> Iterable[ScoreRow]:
    index_of = {s.name: k for k, s in enumerate(answer.prediction.segments)}
    for segment, values in pairs:
        mask = answer.prediction.mask(index_of[segment.name])
        if answer.ignore is not None:
            mask = mask & (answer.reference != answer.ignore)
        figures = score(mask, np.isin(answer.reference, values), answer.prediction.affine)
        yield ScoreRow(case.id, segment.name, figures, answer.seconds)


def _names(segments: Sequence[Segment]) -> str:
    return ", ".join(s.name for s in segments)
