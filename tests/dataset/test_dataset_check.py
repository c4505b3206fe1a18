"""The data check names each thing that is wrong, with the scan and the numbers, and nothing else."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import DatasetFinding, Split, check_dataset, load_dataset, make_split
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.volume import reorient
from tests.datasets import AFFINE, SHAPE, random_image, random_labels, write_dataset, write_scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path, labelled=5)
    return tmp_path


def only_finding(folder: Path, split: Split | None = None) -> DatasetFinding:
    (finding,) = check_dataset(load_dataset(folder), split)
    return finding


def test_a_sound_dataset_has_no_findings(folder: Path) -> None:
    assert check_dataset(load_dataset(folder)) == []


def test_unequal_shapes_are_named_with_both_shapes(folder: Path) -> None:
    write_scan(folder, "s1", random_image(1), random_labels(1)[:, :-2])
    finding = only_finding(folder)
    assert (finding.severity, finding.kind, finding.case) == ("error", "grid", "s1")
    assert "8x9x10 voxels and the label 8x7x10" in finding.sentence


def test_unequal_affines_are_named_with_the_numbers(folder: Path) -> None:
    """TRN-01."""
    flipped = AFFINE.copy()
    flipped[0, 0] = -1
    write_scan(folder, "s1", random_image(1), random_labels(1), label_affine=flipped)
    finding = only_finding(folder)
    assert (finding.kind, finding.case) == ("grid", "s1")
    assert "up to 2 mm (row 0, column 0: image 1, label -1)" in finding.sentence


def test_labels_that_are_not_integers_are_counted(folder: Path) -> None:
    blurred = random_labels(2).astype(np.float32)
    blurred[0, 0, :4] = 0.5
    write_scan(folder, "s2", random_image(2), blurred)
    finding = only_finding(folder)
    assert (finding.kind, finding.case) == ("labels", "s2")
    assert "4 voxel(s) are not" in finding.sentence


def test_unknown_label_values_are_counted_beside_the_known_ones(folder: Path) -> None:
    """TRN-01."""
    strange = random_labels(3).astype(np.int16)
    strange[0, 0, :3] = 7
    strange[0, 1, 0] = -1
    strange[0, 1, 1] = 30000
    write_scan(folder, "s3", random_image(3), strange)
    finding = only_finding(folder)
    assert (finding.severity, finding.kind, finding.case) == ("error", "labels", "s3")
    assert "-1 (1 voxels), 7 (3 voxels), 30000 (1 voxels)" in finding.sentence
    assert "lists 0 background, 1 low, 2 high" in finding.sentence


def test_the_same_scan_under_two_names_is_found_however_it_is_stored(folder: Path) -> None:
    array, affine = reorient(random_image(1).astype(np.float32), AFFINE, "PLS")
    labels, _ = reorient(random_labels(4), AFFINE, "PLS")
    write_scan(folder, "s4", array, labels, affine=affine)
    finding = only_finding(folder)
    assert (finding.severity, finding.kind) == ("error", "duplicate")
    assert "'s1', 's4' hold the same voxels" in finding.sentence


def test_a_scan_that_both_teaches_and_judges_is_called_so(folder: Path) -> None:
    """TRN-01."""
    write_scan(folder, "s4", random_image(1), random_labels(4))
    split = Split(labelled=("s0", "s2"), unlabelled=("s1", "s3"), test=("s4",))
    assert "'s1' in unlabelled, 's4' in test, so an evaluation scan" in only_finding(folder, split).sentence


def test_missing_damaged_and_nan_images_are_named(folder: Path) -> None:
    (folder / "imagesTr/s0.nii.gz").unlink()
    (folder / "imagesTr/s1.nii.gz").write_bytes(b"not a NIfTI file at all" * 20)
    broken = random_image(2).astype(np.float32)
    broken[1, 2, 3] = np.nan
    write_scan(folder, "s2", broken, random_labels(2))
    (folder / "labelsTr/s3.nii.gz").unlink()
    findings = {f.case: f for f in check_dataset(load_dataset(folder))}
    assert set(findings) == {"s0", "s1", "s2", "s3"}
    assert all((f.severity, f.kind) == ("error", "file") for f in findings.values())
    assert "does not exist" in findings["s0"].sentence and "does not exist" in findings["s3"].sentence
    assert "not a NIfTI file" in findings["s1"].sentence
    assert "1 of 720 voxels are NaN" in findings["s2"].sentence


def test_another_number_of_channels_is_an_error(folder: Path) -> None:
    write_scan(folder, "s1", np.stack([random_image(1), random_image(9)], -1), random_labels(1))
    finding = only_finding(folder)
    assert (finding.kind, finding.case) == ("file", "s1")
    assert "holds 2" in finding.sentence


def test_constant_images_are_errors_but_not_each_others_duplicates(folder: Path) -> None:
    for name in ("s1", "s2"):
        write_scan(folder, name, np.full(SHAPE, 7, np.int16), random_labels(1))
    findings = check_dataset(load_dataset(folder))
    assert [(f.kind, f.case) for f in findings] == [("content", "s1"), ("content", "s2")]
    assert "every voxel of channel 'image' is 7" in findings[0].sentence


def test_an_empty_outline_is_worth_a_question(folder: Path) -> None:
    write_scan(folder, "s1", random_image(1), np.zeros(SHAPE, np.uint8))
    finding = only_finding(folder)
    assert (finding.severity, finding.kind) == ("warning", "labels")


def test_a_segment_that_no_labelled_scan_holds_cannot_be_learned(folder: Path) -> None:
    write_scan(folder, "s0", random_image(0), np.minimum(random_labels(0), 1))
    assert check_dataset(load_dataset(folder)) == []  # other scans hold it
    finding = only_finding(folder, Split(labelled=("s0",), unlabelled=("s1", "s2", "s3"), test=("s4",)))
    assert (finding.severity, finding.kind) == ("error", "segments")
    assert "None of the 1 labelled scans contains the segment 2 high" in finding.sentence


def test_a_spacing_far_from_the_rest_is_a_warning_whatever_the_order_of_axes(folder: Path) -> None:
    array, affine = reorient(random_image(1), AFFINE, "SPL")  # 1.5 mm comes first here, and that is the same spacing
    labels, _ = reorient(random_labels(1), AFFINE, "SPL")
    write_scan(folder, "s1", array, labels, affine=affine)
    assert check_dataset(load_dataset(folder)) == []
    thick = np.diag([1.0, 1.0, 6.0, 1.0])
    write_scan(folder, "s2", random_image(2), random_labels(2), affine=thick)
    finding = only_finding(folder)
    assert (finding.severity, finding.kind, finding.case) == ("warning", "spacing", "s2")
    assert "1 x 1 x 6 mm" in finding.sentence and "1 x 1 x 1.5 mm" in finding.sentence


def test_label_values_without_names_are_listed(tmp_path: Path) -> None:
    (finding,) = check_dataset(write_dataset(tmp_path, labelled=2, described=False))
    assert (finding.severity, finding.kind, finding.case) == ("warning", "segments", None)
    assert "the labels contain 0 (in 2 scans), 1 (in 2 scans), 2 (in 2 scans)" in finding.sentence


def test_labels_that_the_split_keeps_closed_are_not_opened(folder: Path) -> None:
    """TRN-02."""
    split = Split(labelled=("s0", "s1"), unlabelled=("s2", "s3"), test=("s4",))
    for name in split.unlabelled:
        (folder / f"labelsTr/{name}.nii.gz").write_bytes(b"garbage")
    dataset = load_dataset(folder)
    assert check_dataset(dataset, split) == []
    assert [f.case for f in check_dataset(dataset, split, all_labels=True)] == ["s2", "s3"]


def test_a_judging_scan_without_outline_is_an_error(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, labelled=2, without_label=1)
    (finding,) = check_dataset(dataset, Split(labelled=("s0",), unlabelled=("s1",), test=("s2",)))
    assert (finding.severity, finding.kind, finding.case) == ("error", "split", "s2")


def test_errors_come_before_warnings_and_progress_counts_to_the_end(folder: Path) -> None:
    write_scan(folder, "s0", random_image(0), np.zeros(SHAPE, np.uint8))
    (folder / "imagesTr/s4.nii.gz").unlink()
    seen: list[tuple[int, int]] = []
    findings = check_dataset(load_dataset(folder), progress=lambda done, total: seen.append((done, total)))
    assert [f.severity for f in findings] == ["error", "warning"]
    assert seen == [(k, 5) for k in range(1, 6)]


def test_scaled_integers_are_compared_by_what_they_mean(folder: Path) -> None:
    even = random_image(0) // 2 * 2
    write_scan(folder, "s0", even, random_labels(0))
    path = folder / "imagesTr/s1.nii.gz"
    write_nifti(path, even // 2, AFFINE)
    stored = bytearray(gzip.decompress(path.read_bytes()))
    stored[112:116] = np.float32(2).tobytes()  # scl_slope: the file now shows the same scan as s0
    path.write_bytes(gzip.compress(bytes(stored)))
    assert "'s0', 's1'" in only_finding(folder).sentence


def test_hippocampus_is_sound(semiseg_data: Path) -> None:
    assert check_dataset(load_dataset(semiseg_data / "hippocampus")) == []


def test_left_atrium_only_lacks_names(semiseg_data: Path) -> None:
    dataset = load_dataset(semiseg_data / "left_atrium")
    (finding,) = check_dataset(dataset, make_split(dataset, None, 4))
    assert finding.kind == "segments" and "0 (in 4 scans), 1 (in 4 scans)" in finding.sentence
