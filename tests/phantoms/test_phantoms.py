"""Phantoms are as difficult as they claim, repeatable, and written as valid files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import SEGMENTS, Phantom, make_phantom
from semiseg.phantoms.writers import write_dataset, write_dicom_series
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.volume import Volume

SMALL = ((32, 32, 20), (3.0, 3.0, 5.0))


@pytest.fixture(scope="module")
def people() -> list[Phantom]:
    return [make_phantom(seed, *SMALL) for seed in range(8)]


def test_the_same_seed_is_the_same_person_and_another_seed_another(people: list[Phantom]) -> None:
    again = make_phantom(0, *SMALL)
    np.testing.assert_array_equal(again.image.array, people[0].image.array)
    np.testing.assert_array_equal(again.labels.array, people[0].labels.array)
    assert not np.array_equal(people[1].labels.array, people[0].labels.array)


def test_every_person_has_every_organ_and_the_sizes_differ(people: list[Phantom]) -> None:
    sizes = {s.name: [p.labels.volumes_ml()[s.name] for p in people] for s in SEGMENTS}
    for name, millilitres in sizes.items():
        assert min(millilitres) > 1.5, name
        assert max(millilitres) > 1.15 * min(millilitres), name
    assert min(sizes["liver"]) > max(sizes["spleen"])


def test_organs_are_where_they_are_in_people(people: list[Phantom]) -> None:
    for person in people:
        centre = {
            s.name: (person.labels.affine @ (*np.argwhere(person.labels.mask(k)).mean(axis=0), 1))[:3]
            for k, s in enumerate(SEGMENTS)
        }
        assert centre["liver"][0] > 0 > centre["spleen"][0]  # RAS+: the liver on the right
        assert centre["kidneys"][1] < centre["liver"][1]  # the kidneys at the back
        assert centre["kidneys"][2] < centre["liver"][2]  # and lower


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_grey_values_of_organs_overlap_with_each_other_and_with_what_has_no_label(modality: str) -> None:
    phantom = make_phantom(3, *SMALL, modality=modality)  # type: ignore[arg-type]
    image, labels = phantom.image.array, phantom.labels.array
    assert image.dtype == np.int16
    low, high = np.percentile(image[labels == 1], (5, 95))
    assert ((image[labels == 2] > low) & (image[labels == 2] < high)).mean() > 0.1
    assert ((image > low) & (image < high) & (labels == 0)).sum() > 0.3 * (labels == 1).sum()


def test_no_threshold_separates_an_organ(people: list[Phantom]) -> None:
    for person in people[:3]:
        liver = person.labels.array == 1
        cuts = np.percentile(person.image.array[liver], (2, 98))
        guess = (person.image.array >= cuts[0]) & (person.image.array <= cuts[1])
        dice = 2 * (guess & liver).sum() / (guess.sum() + liver.sum())
        assert dice < 0.8


def test_mr_brightness_has_no_fixed_scale_and_drifts_across_the_field(people: list[Phantom]) -> None:
    means = [float(p.image.array[p.labels.array == 1].mean()) for p in people]
    assert max(means) > 1.25 * min(means)


def test_a_dataset_folder_is_complete_and_its_split_is_a_partition(tmp_path: Path) -> None:
    ids = write_dataset(
        tmp_path, cases=9, labelled=2, test=3, development=1, seed=5, shape=(16, 16, 8), spacing=(6, 6, 12)
    )
    described = json.loads((tmp_path / "dataset.json").read_text())
    split = json.loads((tmp_path / "split.json").read_text())
    assert described["labels"] == {"0": "background", "1": "liver", "2": "spleen", "3": "kidneys"}
    assert described["numTraining"] == len(described["training"]) == len(ids) == 9
    for entry in described["training"]:
        image, label = read_nifti(tmp_path / entry["image"]), read_labels(tmp_path / entry["label"])
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert set(np.unique(label.array)) <= {0, 1, 2, 3}
    assert set(split) == {"seed", "method", "test", "train", "labelled", "unlabelled", "development"}
    assert sorted(split["labelled"]["2"] + split["unlabelled"]["2"]) == split["train"]
    assert sorted(split["train"] + split["test"] + split["development"]) == ids
    assert [len(split[k]) for k in ("test", "train", "development")] == [3, 5, 1]


def test_a_dataset_with_more_labels_than_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave 2, not 4, to label"):
        write_dataset(tmp_path, cases=10, labelled=4, test=8)


def test_the_same_dicom_series_is_written_twice_with_the_same_uids(people: list[Phantom], tmp_path: Path) -> None:
    first = write_dicom_series(tmp_path / "a", people[0].image, seed=4)
    again = write_dicom_series(tmp_path / "b", people[0].image, seed=4)
    other = write_dicom_series(tmp_path / "c", people[0].image, patient_id="ELSE", seed=4)
    assert [f.name for f in first] != sorted(f.name for f in first)
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in again]
    assert pydicom.dcmread(other[0]).SeriesInstanceUID != pydicom.dcmread(first[0]).SeriesInstanceUID


def test_what_dicom_images_cannot_hold_is_refused(people: list[Phantom], tmp_path: Path) -> None:
    image = people[0].image
    with pytest.raises(VolumeError, match="16-bit integers"):
        write_dicom_series(tmp_path, Volume(image.array.astype(np.float32), image.affine))
    sheared = image.affine.copy()
    sheared[0, 2] = 3.0
    with pytest.raises(VolumeError, match="sheared"):
        write_dicom_series(tmp_path, Volume(image.array, sheared))


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dciodvfy_finds_no_error_in_the_series(
    modality: str, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    image = make_phantom(1, (16, 14, 4), (6, 7, 20), modality=modality).image  # type: ignore[arg-type]
    for path in write_dicom_series(tmp_path, image, modality=modality):  # type: ignore[arg-type]
        result = subprocess.run([require_program("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
        said = (result.stdout + result.stderr).splitlines()
        assert any(f"{modality}Image" in line for line in said)
        assert [line for line in said if line.startswith("Error")] == []
