"""Scans that are outlined on some slices only: the voxels of the other slices are ignored, not background."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from cli.app import main
from semiseg.collection import CollectOptions, PartialLabels, collect
from semiseg.dataset import load_dataset
from semiseg.errors import DatasetError, InputError
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.nifti import read_labels, write_nifti
from tests.collection.clinical_data import (
    NAMES,
    dataset_errors,
    files_by_position,
    find_case_id,
    find_lines,
    make_rtstruct,
    trace_contours,
    write_labels_as_seg,
    write_scan,
)

OUTLINED = (4, 6, 7)  # slices that are outlined
EMPTY = (1, 10)  # slices that only the marker shows to be outlined
PARTIAL = CollectOptions(labels=NAMES, partial=PartialLabels())


def on_slices(labels: NDArray[np.uint8], slices: tuple[int, ...]) -> NDArray[np.uint8]:
    kept = np.zeros_like(labels)
    kept[:, :, slices] = labels[:, :, slices]
    return kept


def write_rtstruct(path: Path, series: DicomSeries, labels: NDArray[np.uint8], marker: tuple[int, ...] = ()) -> None:
    outlines = {name: trace_contours(labels == value, series.volume.affine) for name, value in NAMES.items()}
    if marker:
        box = np.zeros(labels.shape, dtype=bool)
        box[2:5, 2:5, marker] = True
        outlines["Outlined slices"] = trace_contours(box, series.volume.affine)
    make_rtstruct(series, outlines).save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("kind", ["RTSTRUCT", "SEG"])
def test_slices_without_an_outline_are_ignored(tmp_path: Path, kind: str) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    drawn = on_slices(labels, OUTLINED)
    if kind == "SEG":
        write_labels_as_seg(tmp_path / "src/1.dcm", series, drawn)
    else:
        write_rtstruct(tmp_path / "src/1.dcm", series, drawn)
    write_scan(tmp_path / "src/2", 2)
    collected = collect(tmp_path / "src", tmp_path / "data", PARTIAL)
    dataset = load_dataset(tmp_path / "data")
    assert dataset.ignore == 255
    found = read_labels(dataset.cases[find_case_id(collected, "1")].label).array
    outlined = np.isin(np.arange(labels.shape[2]), OUTLINED)
    np.testing.assert_array_equal(found, np.where(outlined, labels, 255))
    assert not dataset_errors(tmp_path / "data")
    (note,) = find_lines(collected, "note", "label")
    assert note.reason == f"3 of {labels.shape[2]} slices are outlined; the others are ignored."


def test_without_the_option_they_are_background_and_with_all_slices_nothing_is_ignored(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    write_rtstruct(tmp_path / "src/1.dcm", series, on_slices(labels, OUTLINED))
    collect(tmp_path / "src", tmp_path / "data", CollectOptions(labels=NAMES))
    assert load_dataset(tmp_path / "data").ignore is None
    everywhere = tuple(range(labels.shape[2]))
    write_rtstruct(tmp_path / "src/1.dcm", series, labels, marker=everywhere)
    options = CollectOptions(partial=PartialLabels("outlined  SLICES"))
    collected = collect(tmp_path / "src", tmp_path / "whole", options)
    dataset = load_dataset(tmp_path / "whole")
    assert dataset.ignore is None
    assert sorted(s.name for s in dataset.segments) == sorted(NAMES), "the marker is no structure"
    assert "12 of 12 slices are outlined" in find_lines(collected, "note", "label")[0].reason


def test_a_marker_shows_that_a_slice_has_no_organ(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    write_rtstruct(tmp_path / "src/1.dcm", series, on_slices(labels, OUTLINED), marker=EMPTY)
    options = CollectOptions(labels=NAMES, partial=PartialLabels("Outlined slices"))
    collected = collect(tmp_path / "src", tmp_path / "data", options)
    found = read_labels(load_dataset(tmp_path / "data").cases[find_case_id(collected, "1")].label).array
    assert not found[:, :, EMPTY].any(), "background, although nothing is outlined there"
    ignored = np.setdiff1d(np.arange(labels.shape[2]), (*OUTLINED, *EMPTY))
    assert (found[:, :, ignored] == 255).all()
    assert not [line for line in collected.entries if "Outlined slices" in line.reason]


def test_regions_that_overlap_are_ignored_too(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    drawn = on_slices(labels, OUTLINED)
    affine = series.volume.affine
    both = {"abdomen": trace_contours(drawn > 0, affine), "liver": trace_contours(drawn == 1, affine)}
    make_rtstruct(series, both).save_as(tmp_path / "src/1.dcm", enforce_file_format=True)
    collect(tmp_path / "src", tmp_path / "data", CollectOptions(overlap="regions", partial=PartialLabels()))
    dataset = load_dataset(tmp_path / "data")
    assert dataset.ignore == 255
    assert {s.name for s in dataset.segments} == {"abdomen", "liver"}
    assert not dataset_errors(tmp_path / "data")


def test_a_scan_that_is_added_keeps_the_value_of_the_dataset(tmp_path: Path) -> None:
    for folder, seed in (("src", 1), ("more", 2), ("whole", 3)):
        series, labels = write_scan(tmp_path / folder / "s", seed)
        write_rtstruct(tmp_path / folder / "s.dcm", series, labels if folder == "whole" else on_slices(labels, (6, 7)))
    collect(tmp_path / "src", tmp_path / "data", PARTIAL)
    collect(tmp_path / "whole", tmp_path / "data", add=True)
    assert load_dataset(tmp_path / "data").ignore == 255, "a label without ignored voxels takes nothing away"
    collect(tmp_path / "more", tmp_path / "data", CollectOptions(partial=PartialLabels()), add=True)
    assert not dataset_errors(tmp_path / "data")
    values = [set(np.unique(read_labels(case.label).array)) for case in load_dataset(tmp_path / "data").cases.values()]
    assert sorted(255 in found for found in values) == [False, True, True]
    with pytest.raises(InputError, match="marks outlined slices, so it cannot be a structure"):
        collect(tmp_path / "more", tmp_path / "data", CollectOptions(partial=PartialLabels("liver")), add=True)
    with pytest.raises(InputError, match="No label holds the structure 'mark'"):
        collect(tmp_path / "more", tmp_path / "data", CollectOptions(partial=PartialLabels("mark")), add=True)
    with pytest.raises(DatasetError, match="'other' the value 255, which is taken"):
        collect(tmp_path / "more", tmp_path / "data", CollectOptions(labels={"other": 255}), add=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (CollectOptions(partial=PartialLabels("mark")), "No label holds the structure 'mark'"),
        (CollectOptions(labels=NAMES, partial=PartialLabels("liver")), "so it cannot be a structure of the dataset"),
    ],
)
def test_a_marker_that_cannot_be_one_is_refused(tmp_path: Path, options: CollectOptions, sentence: str) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    write_rtstruct(tmp_path / "src/1.dcm", series, labels)
    with pytest.raises(InputError, match=sentence):
        collect(tmp_path / "src", tmp_path / "data", options)


def test_a_structure_with_the_value_of_ignored_voxels_leaves_the_scan_unlabelled(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    write_rtstruct(tmp_path / "src/1.dcm", series, on_slices(labels, OUTLINED))
    options = CollectOptions(labels={**NAMES, "liver": 255}, partial=PartialLabels())
    collected = collect(tmp_path / "src", tmp_path / "data", options)
    (refused,) = find_lines(collected, "refused", "label")
    assert "The value 255 stands for voxels that were not outlined" in refused.reason


def test_a_marker_that_cannot_be_read_leaves_the_scan_unlabelled(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    write_rtstruct(tmp_path / "src/1.dcm", series, on_slices(labels, OUTLINED), marker=EMPTY)
    struct = pydicom.dcmread(tmp_path / "src/1.dcm")
    for contour in struct.ROIContourSequence[-1].ContourSequence:
        contour.ContourGeometricType = "OPEN_PLANAR"
    struct.save_as(tmp_path / "src/1.dcm")
    options = CollectOptions(labels=NAMES, partial=PartialLabels("Outlined slices"))
    (refused,) = find_lines(collect(tmp_path / "src", tmp_path / "data", options), "refused", "label")
    assert "contours of type OPEN_PLANAR only" in refused.reason


def test_beside_the_slices_of_a_tilted_series_everything_is_ignored(tmp_path: Path) -> None:
    _, labels = write_scan(tmp_path / "src/1", 1)
    for k, file in enumerate(files_by_position(tmp_path / "src/1")):
        one = pydicom.dcmread(file)
        one.ImagePositionPatient[1] = float(one.ImagePositionPatient[1]) + 3.0 * k  # 3 mm further than the slice before
        one.save_as(file)
    series = read_series(sorted((tmp_path / "src/1").glob("*.dcm")))
    assert series.grid is not None and series.grid.sheared_affine is not None
    outlines = {"liver": trace_contours(on_slices(labels, OUTLINED) == 1, series.grid.sheared_affine)}
    make_rtstruct(series, outlines).save_as(tmp_path / "src/1.dcm", enforce_file_format=True)
    collect(tmp_path / "src", tmp_path / "data", CollectOptions(partial=PartialLabels()))
    (case,) = load_dataset(tmp_path / "data").cases.values()
    assert case.label is not None
    beside = series.grid.labels(np.ones(labels.shape, np.uint8)) == 0
    assert beside.any() and (read_labels(case.label).array[beside] == 255).all()


def test_the_slices_of_a_volume_in_a_file_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    values = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    write_nifti(tmp_path / "src/scan.nii.gz", values, np.eye(4))
    write_nifti(tmp_path / "src/label.nii.gz", (values > 60).astype(np.uint8), np.eye(4))
    (tmp_path / "matches.csv").write_text("scan,label\nscan.nii.gz,label.nii.gz\n")
    options = CollectOptions(labels={"organ": 1}, matches=tmp_path / "matches.csv", partial=PartialLabels())
    collected = collect(tmp_path / "src", tmp_path / "data", options)
    (refused,) = find_lines(collected, "refused", "label")
    assert "slices on which a volume in a file was outlined is unknown" in refused.reason
    assert len(find_lines(collected, "unlabelled", "scan")) == 1


@pytest.mark.parametrize("regions", [False, True])
def test_the_label_ignore_of_an_nnunet_folder_is_kept(tmp_path: Path, regions: bool) -> None:
    source = tmp_path / "Dataset001"
    for name in ("imagesTr", "labelsTr"):
        (source / name).mkdir(parents=True)
    values = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    label = np.zeros(values.shape, np.uint8)
    label[1:4], label[2] = 1, 2 if regions else 1
    label[:, :, 3] = 3
    for number in range(2):
        write_nifti(source / f"imagesTr/a{number}_0000.nii.gz", values + number, np.eye(4))
        write_nifti(source / f"labelsTr/a{number}.nii.gz", label, np.eye(4))
    named = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3} if regions else {"background": 0, "organ": 1}
    document = {"channel_names": {"0": "CT"}, "labels": {**named, "ignore": 3}, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps({**document, "numTraining": 2}))
    collected = collect(source, tmp_path / "data")
    assert not find_lines(collected, "refused", "label")
    dataset = load_dataset(tmp_path / "data")
    assert dataset.ignore == 3
    assert not dataset_errors(tmp_path / "data")
    shutil.copytree(source, tmp_path / "other")
    (tmp_path / "other/dataset.json").write_text(
        json.dumps({**document, "labels": {**named, "ignore": 4}, "numTraining": 2})
    )
    with pytest.raises(DatasetError, match="the same value for the label `ignore`: 4, 3"):
        collect(tmp_path / "other", tmp_path / "data", add=True)


def test_the_command_takes_both_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1)
    write_rtstruct(tmp_path / "src/1.dcm", series, on_slices(labels, OUTLINED), marker=EMPTY)
    typed = ["collect", str(tmp_path / "src"), "--out", str(tmp_path / "data"), "--marker", "outlined slices"]
    with pytest.raises(SystemExit) as end:
        main(typed)
    assert end.value.code == 2 and "add --partial" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*typed, "--partial"])
    assert not end.value.code
    assert "5 of 12 slices are outlined; the others are ignored." in capsys.readouterr().out
