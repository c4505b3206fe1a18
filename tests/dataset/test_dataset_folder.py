"""A dataset folder is read as its dataset.json says, or refused with a sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semiseg.dataset import load_dataset, read_channels, read_reference
from semiseg.dataset.dataset_json import distinct_colours
from semiseg.errors import DatasetError, VolumeError
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.segmentation import Segment
from tests.datasets import AFFINE, LABELS, random_image, random_labels, write_dataset, write_json, write_scan


def test_decathlon_form_gives_channels_segments_and_scans(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, labelled=2, without_label=1)
    assert (dataset.name, dataset.channels) == ("Noise", ("image",))
    assert [(s.name, s.label) for s in dataset.segments] == [("low", 1), ("high", 2)]
    assert dataset.segments[0].colour != dataset.segments[1].colour
    assert [c.label is not None for c in dataset.cases.values()] == [True, True, False]
    np.testing.assert_array_equal(read_channels(dataset.case("s1"), dataset.channels)["image"].array, random_image(1))


def test_newer_form_with_names_first_means_the_same(tmp_path: Path) -> None:
    old = write_dataset(tmp_path / "old")
    new = write_dataset(
        tmp_path / "new",
        document={"labels": {"background": 0, "high": 2, "low": 1}, "channel_names": {"0": "image"}, "modality": None},
    )
    assert new.segments == old.segments and new.channels == old.channels


def test_bare_path_in_training_is_a_scan_nobody_outlined(tmp_path: Path) -> None:
    entries = [{"image": "imagesTr/s0.nii.gz", "label": "labelsTr/s0.nii.gz"}, "imagesTr/s1.nii.gz"]
    dataset = write_dataset(tmp_path, labelled=2, document={"training": entries})
    assert dataset.case("s0").label is not None
    assert dataset.case("s1").label is None  # although labelsTr/ holds one


def test_without_description_scans_go_by_file_name_and_labels_have_no_names(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "atrium", labelled=2, without_label=1, described=False)
    assert (dataset.name, dataset.channels, dataset.segments) == ("atrium", ("image",), ())
    assert [c.label is not None for c in dataset.cases.values()] == [True, True, False]
    named = dataset.with_names(segments=[Segment(name="atrium", label=1)])
    assert named.segments[0].name == "atrium" and named.cases == dataset.cases


def test_names_of_one_file_per_channel_lose_their_number_when_there_is_one_channel(tmp_path: Path) -> None:
    write_dataset(tmp_path, labelled=2, described=False)
    for k in range(2):
        (tmp_path / f"imagesTr/s{k}.nii.gz").rename(tmp_path / f"imagesTr/s{k}_0000.nii.gz")
    assert list(load_dataset(tmp_path).cases) == ["s0", "s1"]
    write_nifti(tmp_path / "imagesTr/s0_0001.nii.gz", random_image(9), AFFINE)
    with pytest.raises(DatasetError, match="one file per channel"):
        load_dataset(tmp_path)


def test_four_digit_ids_are_not_mistaken_for_channels(tmp_path: Path) -> None:
    write_dataset(tmp_path, labelled=2, described=False)
    for sub in ("imagesTr", "labelsTr"):
        for k in range(2):
            (tmp_path / sub / f"s{k}.nii.gz").rename(tmp_path / sub / f"case_000{k}.nii.gz")
    assert list(load_dataset(tmp_path).cases) == ["case_0000", "case_0001"]


def test_hidden_files_of_an_unpacked_archive_are_no_scans(tmp_path: Path) -> None:
    write_dataset(tmp_path, labelled=1, described=False)
    (tmp_path / "imagesTr/._s0.nii.gz").write_bytes(b"resource fork")
    assert list(load_dataset(tmp_path).cases) == ["s0"]


def test_a_dataset_travels_to_worker_processes(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_channels_of_a_4d_image_come_by_name(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, labelled=1, document={"modality": {"0": "FLAIR", "1": "T1w"}})
    both = np.stack([random_image(1), random_image(2)], axis=-1)
    write_scan(tmp_path, "s0", both, random_labels(0))
    channels = read_channels(dataset.case("s0"), dataset.channels)
    np.testing.assert_array_equal(channels["T1w"].array, random_image(2))
    write_scan(tmp_path, "s0", random_image(0), random_labels(0))
    with pytest.raises(VolumeError, match=r"FLAIR, T1w.*holds 1"):
        read_channels(dataset.case("s0"), dataset.channels)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"labels": {"0": "background"}}, "no label except the background"),
        ({"labels": None}, "must name the label values"),
        ({"labels": {"0": "background", "1": "liver", "2": "Liver"}}, r"same name \(liver\)"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, r"same label value \(1\)"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": []}}, r"region .core. must list label values"),
        ({"labels": {"background": 0, "whole": [1, 1]}}, "lists a label value twice"),
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1]},
            r"a label value from 1 to 255 for each of the 2 regions, not \[1\]",
        ),
        ({"labels": {"background": 0, "liver": 1, "ignore": 1}}, "'ignore'"),
        ({"labels": {"0": "background", "300": "liver"}}, "less than or equal to 255"),
        ({"labels": {"0": "background", "one": "liver"}}, "'one': 'liver' is neither"),
        ({"modality": {"0": "T1", "2": "T2"}}, "numbered from 0 without gaps"),
        ({"modality": {"0": "T1", "1": "T1"}}, "two channels have the same name"),
        ({"training": []}, "at least one scan"),
        ({"training": [{"image": ["a.nii.gz", "b.nii.gz"]}]}, "training entry 1 must be a path"),
        ({"training": ["imagesTr/s0.png"]}, r"not a \.nii or \.nii\.gz file"),
        ({"training": ["imagesTr/s0.nii.gz", "other/s0.nii"]}, "two training entries have the scan id 's0'"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(tmp_path: Path, document: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        write_dataset(tmp_path, labelled=1, document=document)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"neither a dataset\.json that lists scans nor NIfTI files"):
        load_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="is not JSON"):
        load_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DatasetError, match="must be a JSON object"):
        load_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {"1": "liver", "1": "spleen"}}')
    with pytest.raises(DatasetError, match="the key '1' twice"):
        load_dataset(tmp_path)


def test_a_label_without_an_image_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, labelled=2, described=False)
    (tmp_path / "imagesTr/s1.nii.gz").unlink()
    with pytest.raises(DatasetError, match="labels without an image: 's1'"):
        load_dataset(tmp_path)


def test_a_reference_must_lie_on_the_grid_of_its_image(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    image = read_channels(dataset.case("s0"), dataset.channels)["image"]
    np.testing.assert_array_equal(read_reference(dataset.case("s0"), image).array, random_labels(0))
    write_scan(tmp_path, "s1", random_image(1), random_labels(1)[:-1])
    with pytest.raises(VolumeError, match="image has 8x9x10 voxels and the label 7x9x10"):
        read_reference(dataset.case("s1"), image)
    shifted = AFFINE.copy()
    shifted[0, 3] = 0.5
    write_scan(tmp_path, "s2", random_image(2), random_labels(2), label_affine=shifted)
    with pytest.raises(VolumeError, match=r"differ by up to 0\.5 mm \(row 0, column 3: image 0, label 0\.5\)"):
        read_reference(dataset.case("s2"), image)


def test_a_scan_without_label_file_has_no_reference(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, labelled=1, without_label=1)
    image = read_channels(dataset.case("s1"), dataset.channels)["image"]
    with pytest.raises(DatasetError, match="'s1' has no label file"):
        read_reference(dataset.case("s1"), image)


def test_every_label_value_gets_its_own_colour() -> None:
    colours = distinct_colours(255)
    assert len(set(colours)) == 255
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_hippocampus_is_read_as_it_is_published(semiseg_data: Path) -> None:
    dataset = load_dataset(semiseg_data / "hippocampus")
    assert len(dataset.cases) == 240
    assert dataset.channels == ("MRI",)
    assert [(s.name, s.label) for s in dataset.segments] == [("Anterior", 1), ("Posterior", 2)]


def test_left_atrium_without_description_is_read_by_file_name(semiseg_data: Path) -> None:
    dataset = load_dataset(semiseg_data / "left_atrium")
    assert len(dataset.cases) == 20 and dataset.segments == ()
    assert all(case.label is not None for case in dataset.cases.values())


def test_a_description_without_a_training_list_takes_scans_by_file_name(tmp_path: Path) -> None:
    write_dataset(tmp_path, labelled=1)
    write_json(tmp_path / "dataset.json", {"labels": LABELS})
    assert list(load_dataset(tmp_path).cases) == ["s0"]
