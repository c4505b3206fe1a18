"""A client's label is put on the grid and the values of its dataset, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import load_dataset
from semiseg.errors import InputError, VolumeError
from semiseg.outputs.nrrd import write_nrrd, write_seg_nrrd
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import reorient
from server.labelling.label_input import read_label
from server.labelling.label_names import LabelNames
from tests.datasets import AFFINE, SHAPE, random_labels, write_dataset, write_json

LIVER = {"labels": {"0": "background", "1": "liver", "4": "tumour", "7": "ignore"}}


@pytest.fixture
def dataset(tmp_path: Path):
    return write_dataset(tmp_path / "data", 1)


def saved(dataset, array, label_info=None, affine=AFFINE):
    file = dataset.folder.parent / "label"
    write_nifti(file.with_suffix(".nii.gz"), array, affine)
    return read_label(file.with_suffix(".nii.gz"), dataset.cases["s0"], LabelNames.from_dataset(dataset), label_info)


def liver(tmp_path: Path):
    return write_dataset(tmp_path / "liver", 1, document=LIVER)


def test_a_label_map_keeps_its_values_and_its_voxels_are_counted(dataset) -> None:
    label = saved(dataset, random_labels(3))
    assert np.array_equal(label.array, random_labels(3)) and label.array.dtype == np.uint8
    assert label.voxels == {"low": int((random_labels(3) == 1).sum()), "high": int((random_labels(3) == 2).sum())}


def test_nrrd_and_floating_point_label_maps_are_read(dataset, tmp_path: Path) -> None:
    segments = (Segment(name="low", label=1), Segment(name="high", label=2))
    write_nrrd(tmp_path / "l.nrrd", Segmentation(segments, random_labels(3), AFFINE))
    label = read_label(tmp_path / "l.nrrd", dataset.cases["s0"], LabelNames.from_dataset(dataset))
    assert np.array_equal(label.array, random_labels(3))
    assert np.array_equal(saved(dataset, random_labels(4).astype(np.float32)).array, random_labels(4))


def test_a_label_map_whose_axes_run_the_other_way_is_turned_back(dataset) -> None:
    array, affine = reorient(random_labels(3), AFFINE, "LPI")
    assert np.array_equal(saved(dataset, np.ascontiguousarray(array), affine=affine).array, random_labels(3))


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        ((8, 9, 9), AFFINE, "another grid"),
        (SHAPE, AFFINE + np.array([[0, 0, 0, 0.5], [0] * 4, [0] * 4, [0] * 4]), "away from the scan's"),
        (SHAPE, np.diag([1.0, 1.0, 2.0, 1.0]), "1 x 1 x 2 mm"),
        (SHAPE, AFFINE + np.array([[0, 0, 0, 2.0], [0] * 4, [0] * 4, [0] * 4]), "reaches from voxel"),
    ],
)
def test_a_label_on_another_grid_is_refused(dataset, shape, affine, words) -> None:
    with pytest.raises(VolumeError, match=words):
        saved(dataset, np.zeros(shape, np.uint8), affine=affine)


@pytest.mark.parametrize("value", [3, 300, -1])
def test_an_unknown_value_is_refused_with_the_known_ones(dataset, value) -> None:
    array = random_labels(3).astype(np.int16)
    array[0, 0, 0] = value
    with pytest.raises(InputError, match=r"low \(1\), high \(2\)|0 to 255"):
        saved(dataset, array)


def test_values_between_two_labels_are_refused(dataset) -> None:
    with pytest.raises(VolumeError, match="interpolation"):
        saved(dataset, random_labels(3) * np.float32(0.5))


def test_a_file_that_is_no_volume_is_refused_without_the_servers_paths(dataset, tmp_path: Path) -> None:
    (tmp_path / "label.bin").write_bytes(b"\x01" * 720)
    with pytest.raises(VolumeError, match="is not supported") as refused:
        read_label(tmp_path / "label.bin", dataset.cases["s0"], LabelNames.from_dataset(dataset))
    assert str(tmp_path) not in str(refused.value)


def test_slicer_numbers_the_segments_that_it_sends_and_the_names_decide(tmp_path: Path) -> None:
    dataset = liver(tmp_path)
    names = LabelNames.from_dataset(dataset)
    assert list(names.values) == ["liver", "tumour", "ignore"]
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0], drawn[1], drawn[2] = 1, 2, 3
    sent = [{"name": "liver", "idx": 1}, {"name": "tumour", "idx": 2}, {"name": "ignore", "idx": 3}]
    label = saved(dataset, drawn, sent)
    assert [int(label.array[k, 0, 0]) for k in range(4)] == [1, 4, 7, 0]
    assert label.voxels == {"liver": 90, "tumour": 90, "ignore": 90}


def test_an_index_that_counts_the_background_is_understood(tmp_path: Path) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0], drawn[1] = 1, 2
    label = saved(liver(tmp_path), drawn, [{"name": "liver", "idx": 2}, {"name": "tumour", "idx": 3}])
    assert [int(label.array[k, 0, 0]) for k in range(3)] == [1, 4, 0]


def test_the_values_of_the_dataset_with_their_names_are_understood(tmp_path: Path) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0] = 4
    assert saved(liver(tmp_path), drawn, [{"name": "tumour", "idx": 4}]).voxels == {"tumour": 90}


def test_an_ambiguous_list_is_refused(tmp_path: Path) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0] = 2
    with pytest.raises(InputError, match="is ambiguous"):
        saved(liver(tmp_path), drawn, [{"name": "liver", "idx": 2}, {"name": "tumour", "idx": 3}])


def test_a_name_that_the_dataset_does_not_have_matters_only_if_it_was_drawn(dataset) -> None:
    sent = [{"name": "low", "idx": 1}, {"name": "high", "idx": 2}, {"name": "Segment_1", "idx": 3}]
    assert np.array_equal(saved(dataset, random_labels(3), sent).array, random_labels(3))
    drawn = random_labels(3)
    drawn[0, 0, 0] = 3
    with pytest.raises(InputError, match=r"'Segment_1', but the dataset has only low \(1\), high \(2\)"):
        saved(dataset, drawn, sent)


@pytest.mark.parametrize("label_info", ["low", [1], [{"idx": 1}], [{"name": "low", "idx": "1"}]])
def test_a_list_of_another_form_is_refused(dataset, label_info) -> None:
    with pytest.raises(InputError, match="label_info"):
        saved(dataset, random_labels(3), label_info)


def test_a_slicer_segmentation_is_read_by_its_names(dataset, tmp_path: Path) -> None:
    other_values = (Segment(name="high", label=1), Segment(name="low", label=2))
    swapped = np.array([0, 2, 1], np.uint8)[random_labels(3)]
    write_seg_nrrd(tmp_path / "l.seg.nrrd", Segmentation(other_values, swapped, AFFINE))
    label = read_label(
        tmp_path / "l.seg.nrrd", dataset.cases["s0"], LabelNames.from_dataset(dataset), [{"name": "x", "idx": 1}]
    )
    assert np.array_equal(label.array, random_labels(3))


def test_segments_of_a_slicer_segmentation_may_not_overlap(dataset, tmp_path: Path) -> None:
    regions = (Segment(name="low", label=1, values=(1, 2)), Segment(name="high", label=2, values=(2,)))
    masks = np.stack([random_labels(3) > 0, random_labels(3) == 2])
    write_seg_nrrd(tmp_path / "l.seg.nrrd", Segmentation(regions, masks, AFFINE))
    with pytest.raises(InputError, match="belong to another segment"):
        read_label(tmp_path / "l.seg.nrrd", dataset.cases["s0"], LabelNames.from_dataset(dataset))


def test_regions_are_painted_over_each_other(tmp_path: Path) -> None:
    document = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    dataset = write_dataset(tmp_path / "regions", 1, document=document)
    names = LabelNames.from_dataset(dataset)
    assert dict(names.values) == {"whole": 1, "core": 2} and names.regions
    regions = (Segment(name="core", label=1, values=(2,)), Segment(name="whole", label=2, values=(1, 2)))
    masks = np.stack([random_labels(3) == 2, random_labels(3) > 0])
    write_seg_nrrd(tmp_path / "l.seg.nrrd", Segmentation(regions, masks, AFFINE))
    assert np.array_equal(read_label(tmp_path / "l.seg.nrrd", dataset.cases["s0"], names).array, random_labels(3))


def test_a_dataset_without_names_needs_those_of_a_bundle(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", 1, described=False)
    with pytest.raises(InputError, match="--bundle"):
        LabelNames.from_dataset(dataset)
    assert LabelNames.from_dataset(dataset, (Segment(name="low", label=1),)).values == {"low": 1}


def test_a_channel_file_gives_the_grid_of_its_channels(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    write_dataset(folder, 1, document={"modality": {"0": "T1", "1": "T2"}})
    write_nifti(folder / "imagesTr" / "s0.nii.gz", np.zeros((*SHAPE, 2), np.int16), AFFINE)
    write_json(folder / "x.json", {})
    assert np.array_equal(saved(load_dataset(folder), random_labels(3)).array, random_labels(3))
