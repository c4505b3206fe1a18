"""Folders as nnU-Net has them, of both versions, become datasets with the same voxels."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.collection import CollectOptions, collect
from semiseg.dataset import load_dataset
from semiseg.errors import DatasetError, InputError
from semiseg.volumes.nifti import read_labels, read_nifti_channels, write_nifti
from tests.collection.clinical_data import dataset_errors, find_lines, read_tree
from tests.datasets import AFFINE, random_image, random_labels

V1 = {"modality": {"0": "FLAIR", "1": "T1"}, "labels": {"0": "background", "1": "low", "2": "high"}}
V2 = {
    "channel_names": {"0": "FLAIR", "1": "T1"},
    "labels": {"background": 0, "low": 1, "high": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def write(root: Path, document: dict[str, Any], cases: int = 3, channels: int = 2, labelled: int = 2) -> Path:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(document))
    for k in range(cases):
        for channel in range(channels):
            write_nifti(root / f"imagesTr/smith_{k:03d}_{channel:04d}.nii.gz", random_image(10 * k + channel), AFFINE)
        if k < labelled:
            write_nifti(root / f"labelsTr/smith_{k:03d}.nii.gz", random_labels(k), AFFINE)
    return root


def mapped(collected: Any) -> dict[str, str]:
    """Case id by the name in nnU-Net's folder."""
    with collected.mapping.open(newline="") as file:
        return {row["description"]: row["case"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("document", [V1, V2], ids=["version 1", "version 2"])
def test_channels_are_stacked_and_labels_kept(document: dict[str, Any], tmp_path: Path) -> None:
    collected = collect(write(tmp_path / "src", document), tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert dataset.channels == ("FLAIR", "T1")
    assert [(s.label, s.name) for s in dataset.segments] == [(1, "low"), (2, "high")]
    assert dataset_errors(tmp_path / "data") == []
    for name, case_id in mapped(collected).items():
        k, case = int(name[-3:]), dataset.cases[case_id]
        volumes = read_nifti_channels(case.image, dataset.channels)
        for channel, volume in enumerate(volumes.values()):
            np.testing.assert_array_equal(volume.array, random_image(10 * k + channel))
            np.testing.assert_allclose(volume.affine, AFFINE)
        if k < 2:
            assert case.label is not None
            np.testing.assert_array_equal(read_labels(case.label).array, random_labels(k))
        else:
            assert case.label is None
    assert [line.source for line in find_lines(collected, "left out", "file")] == ["imagesTs"]


def test_labels_that_are_stored_scaled_are_labels_and_interpolated_ones_are_not(tmp_path: Path) -> None:
    root = write(tmp_path / "src", V2)
    write_nifti(root / "labelsTr/smith_000.nii.gz", random_labels(0) * np.float32(1.00000012), AFFINE)
    write_nifti(root / "labelsTr/smith_001.nii.gz", random_labels(1) * np.float32(0.37), AFFINE)
    collected = collect(root, tmp_path / "data")
    (case,) = [c for c in load_dataset(tmp_path / "data").cases.values() if c.label is not None]
    assert case.label is not None
    np.testing.assert_array_equal(read_labels(case.label).array, random_labels(0))
    (refused,) = find_lines(collected, "refused", "label")
    assert refused.source == "labelsTr/smith_001.nii.gz" and "was the label map resampled" in refused.reason


def test_regions_stay_regions(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    collect(write(tmp_path / "src", {**V2, "labels": labels, "regions_class_order": [1, 2]}), tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert [(s.name, s.reference_values, s.painted) for s in dataset.segments] == [
        ("whole", (1, 2), 1),
        ("core", (2,), 2),
    ]
    assert dataset_errors(tmp_path / "data") == []


def test_names_and_what_headers_say_stay_behind(tmp_path: Path) -> None:
    root = write(tmp_path / "src", V2)
    path = root / "imagesTr/smith_000_0000.nii.gz"
    image = nib.load(path)
    image.header["descrip"], image.header["db_name"] = b"SMITH^JOHN 19611103", b"MRN-0815"
    packed = gzip.compress(image.to_bytes())
    path.write_bytes(packed)
    collect(root, tmp_path / "data")
    content = read_tree(tmp_path / "data").lower()
    assert b"smith" not in content and b"mrn-0815" not in content and b"19611103" not in content


def test_a_table_of_files_in_dataset_json_is_followed(tmp_path: Path) -> None:
    root = write(tmp_path / "src", V2)
    images = [f"imagesTr/smith_000_{c:04d}.nii.gz" for c in range(2)]
    table = {"a": {"images": images, "label": "labelsTr/smith_000.nii.gz"}, "b": {"images": images[::-1]}}
    (root / "dataset.json").write_text(json.dumps({**V2, "dataset": table}))
    collected = collect(root, tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    case = dataset.cases[mapped(collected)["b"]]
    np.testing.assert_array_equal(read_nifti_channels(case.image, ("x", "y"))["x"].array, random_image(1))
    assert case.label is None


def test_a_folder_in_the_decathlons_form_is_read_although_its_names_end_in_numbers(tmp_path: Path) -> None:
    first = collect(write(tmp_path / "src", V2), tmp_path / "data")
    again = collect(tmp_path / "data", tmp_path / "copy")
    assert len(load_dataset(tmp_path / "copy").cases) == 3
    assert set(mapped(again)) == set(mapped(first).values())


def test_what_contradicts_itself_is_refused_scan_by_scan(tmp_path: Path) -> None:
    root = write(tmp_path / "src", V2, cases=6, labelled=5)
    (root / "imagesTr/smith_001_0000.nii.gz").unlink()
    (root / "imagesTr/smith_002_0001.nii.gz").unlink()
    (root / "imagesTr/smith_005_0001.nii.gz").unlink()
    write_nifti(root / "imagesTr/smith_005_0001.nii.gz", random_image(3), AFFINE * [[1], [1], [2], [1]])
    write_nifti(root / "labelsTr/smith_003.nii.gz", random_labels(3) * 7, AFFINE)
    write_nifti(root / "labelsTr/smith_004.nii.gz", random_labels(4)[1:], AFFINE)
    write_nifti(root / "labelsTr/nobody.nii.gz", random_labels(4), AFFINE)
    (root / "imagesTr/smith_006_0000.png").write_bytes(b"no NIfTI")
    (root / "imagesTr/plain.nii.gz").write_bytes((root / "imagesTr/smith_000_0000.nii.gz").read_bytes())
    collected = collect(root, tmp_path / "data")
    scans = {line.source: line.reason for line in find_lines(collected, "refused", "scan")}
    assert scans["smith_001"] == "Its channels are numbered 0001, which leaves a gap."
    assert "lies on another grid" in scans["smith_005"] and "does not end with the number" in scans["plain"]
    assert "the model needs 2 channel(s)" in scans["smith_002"]
    labels = {Path(line.source).name: line.reason for line in find_lines(collected, "refused", "label")}
    assert "holds the value(s) 7, 14, which dataset.json does not name" in labels["smith_003.nii.gz"]
    assert "lies on another grid" in labels["smith_004.nii.gz"]
    assert "There is no usable image of 'nobody'" in labels["nobody.nii.gz"]
    assert [line.source for line in find_lines(collected, "refused", "file")] == ["imagesTr/smith_006_0000.png"]
    assert sorted(mapped(collected)) == ["smith_000", "smith_003", "smith_004"]


def test_wishes_that_are_for_dicom_and_folders_without_names_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "src", V2)
    with pytest.raises(InputError, match="are for DICOM folders"):
        collect(root, tmp_path / "data", CollectOptions(labels={"low": 1}))
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        collect(root, tmp_path / "data")


def test_more_cases_of_the_same_kind_are_added_and_others_are_not(tmp_path: Path) -> None:
    root = write(tmp_path / "src", V2)
    collect(root, tmp_path / "data")
    write(tmp_path / "more/src", V1, cases=5, labelled=5)
    for path in (tmp_path / "more/src").rglob("smith_00[0-2]*"):
        path.unlink()
    collected = collect(tmp_path / "more/src", tmp_path / "data", add=True)
    assert len(load_dataset(tmp_path / "data").cases) == 5 and dataset_errors(tmp_path / "data") == []
    assert len(mapped(collected)) == 5
    other = write(tmp_path / "other", {**V2, "labels": {"background": 0, "high": 1, "low": 2}})
    with pytest.raises(DatasetError, match="do not have the same labels"):
        collect(other, tmp_path / "data", add=True)
