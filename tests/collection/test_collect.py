"""A clinic's folders become a dataset: what fits is taken, and what does not is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from semiseg.collection import CollectOptions, collect
from semiseg.dataset import load_dataset
from semiseg.errors import InputError
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.nifti import read_labels, read_nifti, write_nifti
from tests.collection.clinical_data import (
    dataset_errors,
    files_by_position,
    find_case_id,
    find_lines,
    make_rtstruct,
    make_scan,
    write_labels_as_rtstruct,
    write_labels_as_seg,
    write_scan,
)


def test_scans_with_seg_rtstruct_and_nothing_become_a_dataset_that_passes_the_check(
    clinic: Path, tmp_path: Path
) -> None:
    collected = collect(clinic, tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert dataset.channels == ("MR",)
    assert [(s.label, s.name) for s in dataset.segments] == [(1, "kidneys"), (2, "liver"), (3, "spleen")]
    assert sorted(c.id for c in dataset.cases.values()) == ["case_0001", "case_0002", "case_0003"]
    assert dataset_errors(tmp_path / "data") == []
    assert len(find_lines(collected, "labelled", "scan")) == 2 and len(find_lines(collected, "unlabelled", "scan")) == 1
    for folder in ("a/x", "b/deep/er"):
        case = dataset.cases[find_case_id(collected, folder)]
        series = read_series(sorted((clinic / folder).glob("*.dcm")))
        np.testing.assert_array_equal(read_nifti(case.image).array, series.volume.array)
        np.testing.assert_allclose(read_nifti(case.image).affine, series.volume.affine, atol=1e-4)
    assert dataset.cases[find_case_id(collected, "c")].label is None
    (litter,) = find_lines(collected, "left out", "file")
    assert litter.source == "a/readme.txt"
    (broken,) = find_lines(collected, "refused", "file")
    assert broken.source == "c/broken.dcm"


def test_the_labels_of_the_dataset_are_those_that_were_drawn(tmp_path: Path) -> None:
    drawn = {}
    for seed, direction in enumerate(("axial", "coronal", "oblique", "upside down"), 1):
        series, labels = write_scan(tmp_path / f"src/{seed}", seed, direction)
        write = write_labels_as_seg if seed % 2 else write_labels_as_rtstruct
        write(tmp_path / f"src/{seed}-label.dcm", series, labels)
        drawn[str(seed)] = labels
    collected = collect(
        tmp_path / "src", tmp_path / "data", CollectOptions(labels={"Liver": 1, "SPLEEN": 2, "kidneys": 3})
    )
    dataset = load_dataset(tmp_path / "data")
    for folder, labels in drawn.items():
        case = dataset.cases[find_case_id(collected, folder)]
        assert case.label is not None
        np.testing.assert_array_equal(read_labels(case.label).array, labels)
    assert [s.name for s in dataset.segments] == ["Liver", "SPLEEN", "kidneys"]


def test_the_report_says_where_reading_contours_was_a_matter_of_convention(tmp_path: Path) -> None:
    series, _ = write_scan(tmp_path / "src/scan", 1)
    to_lps = lps_to_ras(series.volume.affine)
    strokes = [
        np.array([[left, 4, 5], [left + 6, 4, 5], [left + 6, 9, 5], [left, 9, 5]]) @ to_lps[:3, :3].T + to_lps[:3, 3]
        for left in (4, 8)
    ]
    make_rtstruct(series, {"lesion": strokes}).save_as(tmp_path / "src/rt.dcm", enforce_file_format=True)
    collected = collect(tmp_path / "src", tmp_path / "data")
    (case,) = load_dataset(tmp_path / "data").cases.values()
    assert case.label is not None
    expected = np.zeros(series.volume.shape)
    expected[4:15, 4:10, 5] = 1
    np.testing.assert_array_equal(read_labels(case.label).array, expected)
    (note,) = find_lines(collected, "note", "structure")
    assert note.source == "rt.dcm"
    assert note.reason == "'lesion' has contours that cross or repeat each other on 1 slice(s); they were united."


def test_copies_of_files_and_scans_are_taken_once(clinic: Path, tmp_path: Path) -> None:
    shutil.copytree(clinic / "a", clinic / "copy of a")
    shutil.copy(clinic / "elsewhere/object-55.dcm", clinic / "elsewhere/again.dcm")
    for path in (clinic / "c").glob("IM*.dcm"):  # the same voxels under another patient and series
        header = pydicom.dcmread(path)
        for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(
                header, keyword, f"{header[keyword].value[:40]}.7.{header.InstanceNumber if 'SOP' in keyword else 0}"
            )
        (clinic / "z").mkdir(exist_ok=True)
        header.save_as(clinic / "z" / path.name)
    collected = collect(clinic, tmp_path / "data")
    assert len(load_dataset(tmp_path / "data").cases) == 3 and dataset_errors(tmp_path / "data") == []
    (twin,) = find_lines(collected, "refused", "scan")
    assert twin.source.startswith("z ") and "holds the same voxels as c (MR" in twin.reason
    assert any("The same object as" in line.reason for line in find_lines(collected, "left out", "file"))


def test_series_that_are_no_volume_are_refused_with_the_reason(clinic: Path, tmp_path: Path) -> None:
    for gone in (*files_by_position(clinic / "c")[4:8], *files_by_position(clinic / "a/x")[1:3]):
        gone.unlink()
    write_scan(clinic / "flat", 12)
    for path in (clinic / "flat").iterdir():
        header = pydicom.dcmread(path)
        header.PixelData = bytes(len(header.PixelData))
        header.save_as(path)
    collected = collect(clinic, tmp_path / "data")
    refused = {line.source.split()[0]: line.reason for line in find_lines(collected, "refused", "scan")}
    assert set(refused) == {"a/x", "c", "flat"}
    assert [line.source for line in find_lines(collected, "left out", "label")] == ["elsewhere/object-55.dcm"]
    assert "Every voxel of the scan is 0" in refused["flat"]
    assert len(load_dataset(tmp_path / "data").cases) == 1


def test_a_series_that_was_corrected_is_collected_and_noted(clinic: Path, tmp_path: Path) -> None:
    # c loses a slice and stays unlabelled; the slices of a/x lean after the SEG was drawn on them, as a gantry does.
    files_by_position(clinic / "c")[4].unlink()
    before = collect(clinic, tmp_path / "before")
    for k, path in enumerate(files_by_position(clinic / "a/x")):
        header = pydicom.dcmread(path)
        header.ImagePositionPatient[1] += 2.0 * k
        header.save_as(path)
    seg = pydicom.dcmread(clinic / "elsewhere/object-55.dcm")
    at = {float(pydicom.dcmread(p).ImagePositionPatient[2]): p for p in (clinic / "a/x").glob("IM*.dcm")}
    for item in seg.PerFrameFunctionalGroupsSequence:
        place = item.PlanePositionSequence[0]
        place.ImagePositionPatient = pydicom.dcmread(at[float(place.ImagePositionPatient[2])]).ImagePositionPatient
    seg.save_as(clinic / "elsewhere/object-55.dcm")
    after = collect(clinic, tmp_path / "after")
    assert dataset_errors(tmp_path / "after") == []
    notes = {line.source.split()[0]: line.reason for line in find_lines(after, "note", "scan")}
    assert "1 slice(s) are missing" in notes["c"]
    assert "tilted by 14.0 degrees (gantry tilt)" in notes["a/x"]
    upright, leaning = (
        read_labels(load_dataset(made.folder).cases[find_case_id(made, "a/x")].label) for made in (before, after)
    )
    assert leaning.shape[2] == upright.shape[2]
    assert leaning.shape[1] > upright.shape[1]
    assert np.bincount(leaning.array.ravel())[1:].tolist() == np.bincount(upright.array.ravel())[1:].tolist()


def test_a_label_on_slices_that_were_resampled_is_refused_and_the_scan_taken(clinic: Path, tmp_path: Path) -> None:
    write_labels_as_seg(clinic / "elsewhere/late.dcm", *write_scan(clinic / "d", 9, "sagittal", patient="MRN-779"))
    files_by_position(clinic / "d")[4].unlink()
    collected = collect(clinic, tmp_path / "data")
    (line,) = find_lines(collected, "refused", "label")
    assert line.source == "elsewhere/late.dcm"
    assert line.reason.startswith("It was drawn on unevenly spaced slices")
    assert load_dataset(tmp_path / "data").cases[find_case_id(collected, "d")].label is None


def test_modalities_are_not_mixed_unless_by_name(clinic: Path, tmp_path: Path) -> None:
    for path in (clinic / "c").glob("IM*.dcm"):
        header = pydicom.dcmread(path)
        header.Modality = "CT"
        header.save_as(path)
    with pytest.raises(InputError, match=r"several modalities, MR \(2\), CT \(1\): select one"):
        collect(clinic, tmp_path / "data")
    collected = collect(clinic, tmp_path / "data", CollectOptions(modalities=("mr",)))
    assert [line.reason for line in find_lines(collected, "left out", "scan")] == ["Modality CT was not selected."]
    both = collect(clinic, tmp_path / "both", CollectOptions(modalities=("MR", "CT")))
    assert load_dataset(both.folder).channels == ("image",)


def test_channels_of_a_study_are_stacked_and_labels_on_any_of_them_count(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        folder = tmp_path / f"src/{seed}"
        series, labels = write_scan(folder / "t1", seed, description="AX T1 SE")
        for k, path in enumerate(sorted((folder / "t1").iterdir())):
            header = pydicom.dcmread(path)
            header.SeriesInstanceUID = f"1.2.{seed}.2"
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.{seed}.2.{k}"
            header.SeriesDescription = "AX T2 TSE" if seed < 3 else "AX PD"
            header.PixelData = (header.pixel_array // 2).astype("<i2").tobytes()
            (folder / "t2").mkdir(exist_ok=True)
            header.save_as(folder / "t2" / path.name)
        write_labels_as_seg(folder / "seg.dcm", series, labels)
    options = CollectOptions(channels={"T2": "*t2*", "T1": "*t1*"})
    collected = collect(tmp_path / "src", tmp_path / "data", options)
    dataset = load_dataset(tmp_path / "data")
    assert dataset.channels == ("T2", "T1") and len(dataset.cases) == 2
    assert dataset_errors(tmp_path / "data") == []
    refused = find_lines(collected, "refused", "scan")
    assert len(refused) == 2 and "0 series for channel 'T2'" in refused[0].reason
    assert all(case.label is not None for case in dataset.cases.values())


def test_nothing_to_collect_is_a_sentence(clinic: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no DICOM images"):
        collect(tmp_path / "empty", tmp_path / "data")
    with pytest.raises(InputError, match="None of the 3 image series"):
        collect(clinic, tmp_path / "data", CollectOptions(descriptions=("*portal*",)))
    with pytest.raises(InputError, match=r"No label holds 'pancreas'; the labels hold these structures: 'kidneys', "):
        collect(clinic, tmp_path / "data", CollectOptions(labels={"pancreas": 1}))
    for path in clinic.rglob("IM*.dcm"):
        if path.name != "IM0001.dcm":
            path.unlink()
    with pytest.raises(InputError, match=r"No scan could be collected; .*data-report.csv says why"):
        collect(clinic, tmp_path / "data")
    assert "single slice" in (tmp_path / "data-report.csv").read_text()
    with pytest.raises(InputError, match="must not contain each other"):
        collect(clinic, clinic / "data")


def test_scans_that_nobody_outlined_yet_are_collected_under_names_to_come(clinic: Path, tmp_path: Path) -> None:
    shutil.rmtree(clinic / "elsewhere")
    with pytest.raises(InputError, match="None of the scans has a label that can be matched"):
        collect(clinic, tmp_path / "data")
    collected = collect(clinic, tmp_path / "data", CollectOptions(labels={"liver": 1, "spleen": 2}))
    assert [s.name for s in load_dataset(tmp_path / "data").segments] == ["liver", "spleen"]
    said = [line.reason for line in find_lines(collected, "note", "dataset")]
    assert said == ["No scan holds a voxel of 'liver'.", "No scan holds a voxel of 'spleen'."]


def test_a_nifti_label_and_a_nifti_image_come_in_by_the_csv(clinic: Path, tmp_path: Path) -> None:
    volume = read_series(sorted((clinic / "c").glob("IM*.dcm"))).volume
    write_nifti(clinic / "c.nii.gz", (volume.array > 300).astype(np.uint8), volume.affine)
    image, labels = make_scan(7)
    (clinic / "n").mkdir()
    write_nifti(clinic / "n/image.nii", image.array, image.affine)
    write_nifti(clinic / "n/label.nii", labels, image.affine)
    (tmp_path / "m.csv").write_text("scan;label\nc;c.nii.gz\nn/image.nii;n/label.nii\n")
    collected = collect(clinic, tmp_path / "data", CollectOptions(labels={"liver": 1}, matches=tmp_path / "m.csv"))
    assert len(find_lines(collected, "labelled", "scan")) == 4
    assert dataset_errors(tmp_path / "data") == []
    case = load_dataset(tmp_path / "data").cases[find_case_id(collected, str(clinic / "n/image.nii"))]
    assert case.label is not None
    np.testing.assert_array_equal(read_labels(case.label).array, np.where(labels == 1, 1, 0))
