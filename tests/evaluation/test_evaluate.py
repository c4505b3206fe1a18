"""An evaluation judges every scan it was asked for, and says so where it could not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.dataset import Dataset, load_dataset
from semiseg.errors import Cancelled, DatasetError, EngineError
from semiseg.evaluation.evaluator import evaluate, match_segments
from semiseg.evaluation.metrics import score
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume
from tests.datasets import AFFINE, random_image, random_labels, write_dataset, write_scan

LOW, HIGH = Segment(name="low", label=1), Segment(name="high", label=2)
IDS = ("s0", "s1", "s2", "s3")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "data")


def answering(
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda labels: labels,
    segments: tuple[Segment, ...] = (LOW, HIGH),
    ids: tuple[str, ...] = IDS,
) -> Callable[[Mapping[str, Volume]], Segmentation]:
    """A model that knows the outlines of the scans by their voxels, and changes them."""
    known = {random_image(int(i[1:])).tobytes(): random_labels(int(i[1:])) for i in ids}

    def segment(channels: Mapping[str, Volume]) -> Segmentation:
        image = channels["image"]
        labels = known[np.ascontiguousarray(image.array).tobytes()]
        return Segmentation(segments, change(labels), image.affine)

    return segment


def test_a_perfect_model_gets_perfect_figures_for_every_scan_and_segment(dataset: Dataset) -> None:
    found = evaluate(answering(), dataset, IDS, title="perfect", notes=("not validated",))
    assert found.cases == IDS and found.segments == ("low", "high") and len(found.rows) == 8
    assert {(r.score.dice, r.score.hd95_mm) for r in found.rows} == {(1.0, 0.0)}
    assert found.notes == ("not validated",) and not found.failures
    assert all(row.seconds >= 0 for row in found.rows)


def test_figures_are_those_of_the_metrics_on_the_scans_own_spacing(dataset: Dataset) -> None:
    """TRN-05."""
    found = evaluate(answering(lambda labels: np.roll(labels, 1, axis=2)), dataset, ("s2",))
    expected = score(np.roll(random_labels(2), 1, axis=2) == 2, random_labels(2) == 2, AFFINE)
    assert found.segment_rows("high")[0].score == expected


def test_segments_meet_by_name_whatever_their_numbers_and_capitals(dataset: Dataset) -> None:
    swapped = (Segment(name="High", label=1), Segment(name="LOW", label=2))
    found = evaluate(answering(lambda a: np.choose(a, [0, 2, 1]).astype(np.uint8), swapped), dataset, IDS)
    assert found.segments == ("High", "LOW")
    assert all(row.score.dice == 1 for row in found.rows)


def test_segments_that_only_one_side_knows_are_left_out_with_a_note(dataset: Dataset) -> None:
    found = evaluate(answering(segments=(LOW, Segment(name="spleen", label=9))), dataset, IDS)
    assert found.segments == ("low",)
    assert found.notes == (
        "The model also finds spleen, which the dataset does not outline.",
        "The dataset also outlines high, which the model does not find.",
    )


def test_a_model_without_a_segment_in_common_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"finds spleen and .* outlines low, high: there is nothing to compare"):
        evaluate(answering(segments=(Segment(name="spleen", label=1),)), dataset, IDS)


def test_a_dataset_without_names_is_matched_by_number_with_a_note(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "atrium", described=False)
    pairs, notes = match_segments((HIGH, LOW), dataset)
    assert pairs == ((HIGH, (2,)), (LOW, (1,)))
    assert "matched by number" in notes[0]
    assert all(r.score.dice == 1 for r in evaluate(answering(), dataset, IDS).rows)


def test_one_scan_that_fails_is_recorded_with_its_sentence_and_loses_no_other(dataset: Dataset) -> None:
    perfect = answering()

    def sometimes(channels: Mapping[str, Volume]) -> Segmentation:
        if np.array_equal(channels["image"].array, random_image(1)):
            raise EngineError("The engine ran out of memory.")
        return perfect(channels)

    seen: list[tuple[int, int, str]] = []
    found = evaluate(sometimes, dataset, IDS, progress=lambda *step: seen.append(step))
    assert found.failures == {"s1": "The engine ran out of memory."}
    assert found.cases == IDS and seen[-1] == (4, 4, "s3")
    assert [math.isnan(row.score.dice) for row in found.segment_rows("low")] == [False, True, False, False]
    dice = found.summary()[0]
    assert (dice.mean, dice.n, dice.missing) == (1.0, 3, 1)


def test_when_every_scan_fails_the_reasons_are_left(dataset: Dataset) -> None:
    def never(channels: Mapping[str, Volume]) -> Segmentation:
        raise EngineError("No engine.")

    found = evaluate(never, dataset, IDS)
    assert found.failures == dict.fromkeys(IDS, "No engine.")
    assert found.segments == ("low", "high") and found.summary()[0].n == 0


def test_a_reference_on_another_grid_is_a_failure_of_that_scan(dataset: Dataset) -> None:
    shifted = AFFINE.copy()
    shifted[2, 3] = 1.5
    write_scan(dataset.folder, "s2", random_image(2), random_labels(2), label_affine=shifted)
    found = evaluate(answering(), dataset, IDS)
    assert list(found.failures) == ["s2"] and "does not lie on the grid" in found.failures["s2"]


def test_a_reference_value_without_a_name_is_a_failure_and_not_background(dataset: Dataset) -> None:
    write_scan(dataset.folder, "s2", random_image(2), np.where(random_labels(2) == 1, 5, random_labels(2)))
    assert "does not name: [5]" in evaluate(answering(), dataset, IDS).failures["s2"]


def test_a_mask_on_another_grid_than_its_scan_is_a_failure(dataset: Dataset) -> None:
    found = evaluate(answering(lambda labels: labels[:-1]), dataset, ("s0",))
    assert "does not lie on the scan's own grid" in found.failures["s0"]


def test_an_empty_prediction_counts_as_missing_distance_and_zero_overlap(dataset: Dataset) -> None:
    found = evaluate(answering(lambda labels: np.where(labels == 2, 0, labels).astype(np.uint8)), dataset, IDS)
    dice, _, hd95, *_ = (s for s in found.summary() if s.segment == "high")
    assert (dice.mean, dice.missing) == (0.0, 0)
    assert math.isnan(hd95.mean) and (hd95.n, hd95.missing) == (0, 4)


def test_cancelling_stops_the_whole_evaluation(dataset: Dataset) -> None:
    def stopped(channels: Mapping[str, Volume]) -> Segmentation:
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        evaluate(stopped, dataset, IDS)


def test_kept_masks_lie_on_the_grid_of_their_scans(dataset: Dataset, tmp_path: Path) -> None:
    evaluate(answering(), dataset, IDS, keep=tmp_path / "masks")
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [f"{i}.nii.gz" for i in IDS]
    kept, image = read_labels(tmp_path / "masks/s3.nii.gz"), read_nifti(dataset.folder / "imagesTr/s3.nii.gz")
    np.testing.assert_array_equal(kept.array, random_labels(3))
    np.testing.assert_array_equal(kept.affine, image.affine)


def test_overlapping_masks_are_compared_one_by_one(dataset: Dataset) -> None:
    def regions(channels: Mapping[str, Volume]) -> Segmentation:
        labels = random_labels(0)
        return Segmentation((LOW, HIGH), np.stack([labels == 1, labels >= 1]), channels["image"].affine)

    low, high = evaluate(regions, dataset, ("s0",)).rows
    assert low.score.dice == 1 and high.score.dice < 1


@pytest.mark.parametrize(
    ("ids", "said"),
    [((), "no scan to evaluate"), (("s0", "s0"), "named twice"), (("s9",), "no scan called 's9'")],
)
def test_a_list_of_scans_that_makes_no_sense_is_refused(dataset: Dataset, ids: tuple[str, ...], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        evaluate(answering(), dataset, ids)


def test_scans_without_a_label_file_are_refused_before_the_first_is_segmented(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, labelled=1, without_label=1)

    def never(channels: Mapping[str, Volume]) -> Segmentation:
        raise AssertionError("segmented although there is nothing to compare with")

    with pytest.raises(DatasetError, match="s1: no label file"):
        evaluate(never, dataset, ("s0", "s1"))


def test_real_outlines_moved_by_a_voxel_are_about_a_millimetre_off(semiseg_data: Path) -> None:
    dataset = load_dataset(semiseg_data / "hippocampus")
    ids = tuple(dataset.cases)[:4]
    by_shape = {}
    for i in ids:
        image = read_nifti(dataset.case(i).image)
        by_shape[np.ascontiguousarray(image.array).tobytes()] = read_labels(dataset.cases[i].label or Path())

    def moved(channels: Mapping[str, Volume]) -> Segmentation:
        labels = by_shape[np.ascontiguousarray(channels["MRI"].array).tobytes()]
        return Segmentation(dataset.segments, np.roll(labels.array, 1, 0).astype(np.uint8), labels.affine)

    found = evaluate(moved, dataset, ids)
    assert not found.failures and found.segments == ("Anterior", "Posterior")
    for row in found.rows:
        assert row.score.hd95_mm == pytest.approx(1.0)
        assert 0.2 < row.score.assd_mm < 1.0 and 0.75 < row.score.dice < 0.95
        assert row.score.prediction_ml == pytest.approx(row.score.reference_ml)
