"""Structures get the values that were asked for, and what overlaps is decided by a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from semiseg.collection import CollectOptions, collect
from semiseg.collection.structures import Structures, number_names, parse_labels
from semiseg.dataset import load_dataset
from semiseg.errors import InputError, VolumeError
from semiseg.volumes.nifti import read_labels
from tests.collection.clinical_data import (
    dataset_errors,
    find_case_id,
    find_lines,
    make_rtstruct,
    trace_contours,
    write_labels_as_seg,
    write_scan,
)


def test_structures_absent_ignored_and_unusable_are_told(tmp_path: Path) -> None:
    first, labels = write_scan(tmp_path / "src/1", 1)
    write_labels_as_seg(tmp_path / "src/1.dcm", first, labels)
    second, labels = write_scan(tmp_path / "src/2", 2)
    contours = trace_contours(labels == 1, second.volume.affine)
    struct = make_rtstruct(second, {"LIVER ": contours, "couch": contours, "iso": contours})
    for contour in struct.ROIContourSequence[2].ContourSequence:
        contour.ContourGeometricType = "POINT"
    struct.save_as(tmp_path / "src/2.dcm", enforce_file_format=True)
    collected = collect(tmp_path / "src", tmp_path / "data", CollectOptions(labels={"liver": 1, "spleen": 2}))
    told = {(line.status, line.source): line.reason for line in collected.entries if line.what == "structure"}
    assert told["note", "2.dcm"] == "'spleen' is not in the label: the scan has no voxel of it."
    assert told["left out", "1.dcm"] == "'kidneys' is not in --labels."
    assert told["left out", "2.dcm"] == "'couch' is not in --labels."
    assert told["refused", "2.dcm"] == "'iso' has contours of type POINT only, which enclose nothing."
    assert len(find_lines(collected, "labelled", "scan")) == 2


def test_a_structure_that_cannot_be_read_leaves_its_scan_unlabelled(tmp_path: Path) -> None:
    first, labels = write_scan(tmp_path / "src/1", 1)
    write_labels_as_seg(tmp_path / "src/1.dcm", first, labels)
    second, labels = write_scan(tmp_path / "src/2", 2)
    beyond = [points + np.array([0, 0, 500]) for points in trace_contours(labels == 2, second.volume.affine)]
    struct = make_rtstruct(second, {"liver": trace_contours(labels == 1, second.volume.affine), "spleen": beyond})
    struct.save_as(tmp_path / "src/2.dcm", enforce_file_format=True)
    collected = collect(tmp_path / "src", tmp_path / "data")
    (refused,) = find_lines(collected, "refused", "label")
    assert "'spleen' has a contour on no slice" in refused.reason
    assert refused.reason.endswith("The scan is taken as unlabelled.")
    assert load_dataset(tmp_path / "data").cases[find_case_id(collected, "2")].label is None


@pytest.fixture
def overlapping(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A liver and a lesion that lies half in it."""
    series, _ = write_scan(tmp_path / "src/1", 1)
    liver, lesion = (np.zeros(series.volume.shape, dtype=bool) for _ in range(2))
    liver[5:15, 5:15, 3:8], lesion[12:18, 8:12, 4:6] = True, True
    masks = {"liver": liver, "lesion": lesion}
    struct = make_rtstruct(series, {n: trace_contours(m, series.volume.affine) for n, m in masks.items()})
    struct.save_as(tmp_path / "src/rt.dcm", enforce_file_format=True)
    other, _ = write_scan(tmp_path / "src/2", 2)
    apart = make_rtstruct(other, {n: trace_contours(m, other.volume.affine) for n, m in {"lesion": lesion}.items()})
    apart.save_as(tmp_path / "src/rt2.dcm", enforce_file_format=True)
    return tmp_path / "src", liver, lesion


def test_overlap_is_refused_with_its_voxels_unless_someone_says_who_wins(
    overlapping: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    source, liver, lesion = overlapping
    both = np.count_nonzero(liver & lesion)
    labels = {"liver": 1, "lesion": 2}
    collected = collect(source, tmp_path / "refused", CollectOptions(labels=labels))
    (refused,) = find_lines(collected, "refused", "label")
    assert f"{both} voxels belong to both 'liver' and 'lesion'" in refused.reason
    for overlap, expected in {
        "later": np.where(lesion, 2, np.where(liver, 1, 0)),
        "earlier": np.where(liver, 1, np.where(lesion, 2, 0)),
    }.items():
        collected = collect(source, tmp_path / overlap, CollectOptions(labels=labels, overlap=overlap))  # type: ignore[arg-type]
        label = tmp_path / overlap / f"labelsTr/{find_case_id(collected, '1')}.nii.gz"
        np.testing.assert_array_equal(read_labels(label).array, expected)


def test_overlap_can_be_kept_as_regions(overlapping: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    source, liver, lesion = overlapping
    options = CollectOptions(labels={"liver": 1, "lesion": 2}, overlap="regions")
    collected = collect(source, tmp_path / "data", options)
    dataset = load_dataset(tmp_path / "data")
    assert {s.name: s.reference_values for s in dataset.segments} == {"liver": (1, 3), "lesion": (2, 3)}
    array = read_labels(tmp_path / f"data/labelsTr/{find_case_id(collected, '1')}.nii.gz").array
    for segment, mask in zip(dataset.segments, (liver, lesion), strict=True):
        np.testing.assert_array_equal(np.isin(array, segment.reference_values), mask)
    assert dataset_errors(tmp_path / "data") == []
    series, _ = write_scan(source / "3", 3)
    struct = make_rtstruct(
        series,
        {"lesion": trace_contours(liver, series.volume.affine), "Liver": trace_contours(lesion, series.volume.affine)},
    )
    struct.save_as(source / "rt3.dcm", enforce_file_format=True)
    again = collect(source, tmp_path / "data", CollectOptions(overlap="regions"), add=True)
    array = read_labels(tmp_path / f"data/labelsTr/{find_case_id(again, '3')}.nii.gz").array
    np.testing.assert_array_equal(array == 3, liver & lesion)
    np.testing.assert_array_equal(np.isin(array, (2, 3)), liver)


def test_labels_are_read_from_one_line() -> None:
    assert parse_labels("tumour=2, Liver lobe =1,lesion=2") == {"Liver lobe": 1, "tumour": 2, "lesion": 2}
    assert parse_labels("a=b=3") == {"a=b": 3}
    for wrong in ("", "liver", "liver=", "=1", "liver=0", "liver=256", "liver=1.5", "liver=1,,", "background=1"):
        with pytest.raises(InputError):
            parse_labels(wrong)


def test_names_are_numbered_in_their_order_whatever_their_capitals() -> None:
    assert number_names(["spleen", "Liver", "liver", "LIVER", "kidney  left"]) == {
        "kidney left": 1,
        "LIVER": 2,
        "spleen": 3,
    }
    with pytest.raises(InputError, match="256 structures"):
        number_names(f"s{k}" for k in range(256))


masks_of_three = arrays(bool, (3, 3, 4, 2))


@given(masks_of_three)
def test_regions_lose_nothing_and_winners_lose_only_what_overlaps(masks: np.ndarray) -> None:
    parts = list(enumerate(masks, start=1))
    table = {"a": 1, "b": 2, "c": 3}
    shape = (3, 4, 2)
    regions = Structures(table, "regions")
    painted = regions.merge_masks(parts, shape)
    for value, mask in parts:
        codes = [code for code, structures in regions.codes.items() if value in structures]
        np.testing.assert_array_equal(np.isin(painted, codes), mask)
    numbers = np.where(masks, np.arange(1, 4)[:, None, None, None], 0)
    np.testing.assert_array_equal(Structures(table, "later").merge_masks(parts, shape), numbers.max(axis=0))
    lowest = np.where(masks.any(axis=0), np.argmax(masks, axis=0) + 1, 0)
    np.testing.assert_array_equal(Structures(table, "earlier").merge_masks(parts, shape), lowest)
    if (masks.sum(axis=0) > 1).any():
        with pytest.raises(VolumeError, match="voxels belong to both"):
            Structures(table).merge_masks(parts, shape)
    else:
        np.testing.assert_array_equal(Structures(table).merge_masks(parts, shape), numbers.max(axis=0))
