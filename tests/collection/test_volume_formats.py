"""Labels and scans are collected from every format like from NIfTI: 3D Slicer, NRRD, MetaImage, MGH, pairs."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.collection import CollectOptions, collect
from semiseg.dataset import check_dataset, load_dataset, read_channels, read_reference
from semiseg.errors import DatasetError, InputError
from semiseg.outputs.nrrd import write_nrrd, write_seg_nrrd
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.segmentation import Segment, Segmentation
from tests.collection.clinical_data import dataset_errors, find_lines, make_segmentation, write_scan
from tests.datasets import AFFINE, random_image, random_labels
from tests.volumes.volume_files import make_metaimage, make_nrrd, nifti_file

LPS = np.diag([-1.0, -1, 1, 1])


def as_nrrd(path: Path, array: NDArray[np.integer], affine: NDArray[np.float64], **fields: str | None) -> Path:
    lps = LPS @ affine
    vectors = ["(" + ",".join(f"{v:.17g}" for v in lps[:3, k]) + ")" for k in range(4)]
    told = {
        "type": "short",
        "sizes": " ".join(map(str, array.shape)),
        "space": "left-posterior-superior",
        "space directions": " ".join(vectors[:3]),
        "space origin": vectors[3],
    }
    return make_nrrd(path, {**told, **fields}, array.astype("<i2").tobytes(order="F"))


def as_meta(path: Path, array: NDArray[np.integer], affine: NDArray[np.float64]) -> Path:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    told = {
        "DimSize": " ".join(map(str, array.shape)),
        "TransformMatrix": " ".join(f"{v:.17g}" for v in (lps[:3, :3] / spacing).T.ravel()),
        "ElementSpacing": " ".join(f"{v:.17g}" for v in spacing),
        "Offset": " ".join(f"{v:.17g}" for v in lps[:3, 3]),
    }
    raw = path.with_suffix(".raw")
    raw.write_bytes(array.astype("<i2").tobytes(order="F"))
    return make_metaimage(path, told, file=raw.name)


@pytest.mark.parametrize("direction", ["axial", "sagittal", "oblique", "upside down"])
def test_a_segmentation_of_slicer_labels_the_only_series_beside_it_by_its_names(direction: str, tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/dicom", 1, direction)
    write_seg_nrrd(tmp_path / "src/Segmentation.seg.nrrd", make_segmentation(series, labels))
    collect(tmp_path / "src", tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert [s.name for s in dataset.segments] == sorted(s.name for s in make_segmentation(series, labels).segments)
    (case,) = dataset.cases.values()
    assert case.label is not None
    found = read_labels(case.label)
    by_name = {s.name: s.label for s in dataset.segments}
    for segment in make_segmentation(series, labels).segments:
        np.testing.assert_array_equal(found.array == by_name[segment.name], labels == segment.label)
    assert dataset_errors(tmp_path / "data") == []


def test_slicer_may_store_a_part_of_the_scan_or_more_than_it_or_turn_its_axes(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/dicom", 1)
    whole = make_segmentation(series, labels)
    outlined = np.argwhere(labels)
    low, high = outlined.min(axis=0), outlined.max(axis=0) + 1
    parts = {
        "part": (labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], low),
        "more": (np.pad(labels, 3), np.array([-3, -3, -3])),
    }
    for name, (array, start) in parts.items():
        affine = series.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ start
        write_seg_nrrd(tmp_path / "src/s.seg.nrrd", Segmentation(whole.segments, np.ascontiguousarray(array), affine))
        collect(tmp_path / "src", tmp_path / name)
        (case,) = load_dataset(tmp_path / name).cases.values()
        assert case.label is not None, name
        assert np.count_nonzero(read_labels(case.label).array) == np.count_nonzero(labels), name
        np.testing.assert_array_equal(read_labels(case.label).array > 0, labels > 0, err_msg=name)


def test_a_segmentation_of_slicer_on_another_grid_is_refused(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/dicom", 1)
    affine = series.volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (0.4, 0, 0)
    write_seg_nrrd(
        tmp_path / "src/s.seg.nrrd", Segmentation(make_segmentation(series, labels).segments, labels, affine)
    )
    collected = collect(tmp_path / "src", tmp_path / "data")
    (line,) = find_lines(collected, "refused", "label")
    assert "0.40 of a voxel away from the scan's" in line.reason


def test_segments_of_slicer_that_overlap_become_regions(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/dicom", 1)
    segments = (Segment(name="organ", label=1, values=(1,)), Segment(name="lesion", label=2, values=(2,)))
    organ = labels == 1
    lesion = np.zeros_like(organ)
    lesion[tuple(np.argwhere(organ)[0])] = True
    mask = Segmentation(segments, np.stack([organ, lesion]), series.volume.affine)
    write_seg_nrrd(tmp_path / "src/s.seg.nrrd", mask)
    collect(tmp_path / "src", tmp_path / "data", CollectOptions(overlap="regions"))
    dataset = load_dataset(tmp_path / "data")
    (case,) = dataset.cases.values()
    assert case.label is not None
    array = read_labels(case.label).array
    values = {s.name: s.reference_values for s in dataset.segments}
    np.testing.assert_array_equal(np.isin(array, values["organ"]), organ)
    np.testing.assert_array_equal(np.isin(array, values["lesion"]), lesion)


def test_a_plain_nrrd_is_a_label_map_whose_values_have_to_be_named(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/dicom", 1)
    write_nrrd(tmp_path / "src/label.nrrd", make_segmentation(series, labels))
    with pytest.raises(InputError, match=r"label\.nrrd is a label map without names"):
        collect(tmp_path / "src", tmp_path / "data")
    collect(tmp_path / "src", tmp_path / "data", CollectOptions(labels={"a": 1, "b": 2, "c": 3, "d": 4}))
    (case,) = load_dataset(tmp_path / "data").cases.values()
    assert case.label is not None
    np.testing.assert_array_equal(read_labels(case.label).array, labels)


def test_a_csv_names_scans_and_labels_of_any_format(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    as_nrrd(source / "scan.nrrd", random_image(1), AFFINE)
    as_meta(source / "label.mhd", random_labels(1).astype(np.int16), AFFINE)
    table = tmp_path / "m.csv"
    table.write_text("scan,label\nscan.nrrd,label.mhd\n")
    collected = collect(source, tmp_path / "data", CollectOptions(matches=table, labels={"low": 1, "high": 2}))
    (case,) = load_dataset(tmp_path / "data").cases.values()
    assert case.label is not None
    np.testing.assert_array_equal(read_nifti(case.image).array, random_image(1))
    np.testing.assert_array_equal(read_labels(case.label).array, random_labels(1))
    assert find_lines(collected, "left out", "file") == []  # label.raw belongs to label.mhd
    table.write_text("scan,label\nm.csv,label.mhd\n")
    with pytest.raises(InputError, match="not a NIfTI image or other volume: it is a text file"):
        collect(source, tmp_path / "other", CollectOptions(matches=table, labels={"low": 1, "high": 2}))


def test_remarks_on_a_scan_are_in_the_report(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "scan.nii").write_bytes(bytes(nifti_file(codes=(0, 0))))
    table = tmp_path / "m.csv"
    table.write_text("scan,label\nscan.nii,\n")
    collected = collect(source, tmp_path / "data", CollectOptions(matches=table, labels={"low": 1}))
    (note,) = find_lines(collected, "note", "scan")
    assert "does not define left and right" in note.reason


def nnunet(root: Path, ending: str) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for k in range(2):
        for channel in range(2):
            written(root / f"imagesTr/case_{k}_{channel:04d}{ending}", random_image(10 * k + channel), AFFINE)
        written(root / f"labelsTr/case_{k}{ending}", random_labels(k).astype(np.int16), AFFINE)
    document = {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": {"background": 0, "low": 1, "high": 2},
        "numTraining": 2,
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def written(path: Path, array: NDArray[np.integer], affine: NDArray[np.float64]) -> None:
    if path.suffix == ".nrrd":
        as_nrrd(path, array, affine)
    elif path.suffix == ".mhd":
        as_meta(path, array, affine)
    elif path.suffix == ".mgz":
        nib.save(nib.MGHImage(array.astype(np.int16), affine), path)
    else:
        nib.save(nib.Nifti1Image(array.astype(np.int16), affine), path)


@pytest.mark.parametrize("ending", [".nrrd", ".mhd", ".mgz", ".nii", ".hdr"])
def test_an_nnunet_folder_of_any_file_ending_becomes_a_dataset(ending: str, tmp_path: Path) -> None:
    collected = collect(nnunet(tmp_path / "src", ending), tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert len(dataset.cases) == 2 and dataset_errors(tmp_path / "data") == []
    assert [line for line in collected.entries if line.what in ("refused", "left out")] == []
    seen = set()
    for case in dataset.cases.values():
        assert case.label is not None
        channels = read_channels(case, dataset.channels)
        k = next(k for k in range(2) if np.array_equal(channels["FLAIR"].array, random_image(10 * k)))
        np.testing.assert_array_equal(channels["T1"].array, random_image(10 * k + 1))
        np.testing.assert_array_equal(read_labels(case.label).array, random_labels(k))
        seen.add(k)
    assert seen == {0, 1}


def test_only_files_of_the_file_ending_count_and_one_that_is_not_read_is_refused(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "src", ".nrrd")
    written(root / "imagesTr/case_0_0000.nii", random_image(5), AFFINE)
    collected = collect(root, tmp_path / "data")
    (line,) = find_lines(collected, "refused", "file")
    assert line.source == "imagesTr/case_0_0000.nii" and "named .nrrd" in line.reason
    document = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**document, "file_ending": ".png"}))
    with pytest.raises(DatasetError, match=r"files that end in '\.png' \(file_ending\) are not read; \.seg\.nrrd,"):
        collect(root, tmp_path / "other")


@pytest.mark.parametrize("ending", [".nrrd", ".mhd", ".mgz"])
def test_a_dataset_may_hold_any_format(ending: str, tmp_path: Path) -> None:
    """Checked, read and compared in place, without collecting it first."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for k in range(3):
        written(tmp_path / f"imagesTr/s{k}{ending}", random_image(k), AFFINE)
        written(tmp_path / f"labelsTr/s{k}{ending}", random_labels(k).astype(np.int16), AFFINE)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "low": 1, "high": 2}}))
    dataset = load_dataset(tmp_path)
    assert list(dataset.cases) == ["s0", "s1", "s2"]
    assert check_dataset(dataset) == []
    image = read_channels(dataset.case("s1"), dataset.channels)["image"]
    np.testing.assert_array_equal(read_reference(dataset.case("s1"), image).array, random_labels(1))


def test_the_check_warns_of_a_header_that_contradicts_itself(tmp_path: Path) -> None:
    """VOL-09."""
    (tmp_path / "imagesTr").mkdir()
    for k in range(3):
        written(tmp_path / f"imagesTr/s{k}.nrrd", random_image(k), AFFINE)
    as_nrrd(tmp_path / "imagesTr/s1.nrrd", random_image(1), AFFINE, space=None, **{"space dimension": "3"})
    (finding,) = check_dataset(load_dataset(tmp_path))
    assert (finding.severity, finding.kind, finding.case) == ("warning", "file", "s1")
    assert "does not define left and right" in finding.sentence
