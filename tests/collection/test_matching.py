"""A label goes to the scan it was drawn on, or to none: nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from semiseg.collection.label_matching import LabelMatches, match_labels
from semiseg.collection.source_index import SourceIndex, index_source
from semiseg.errors import InputError
from semiseg.volumes.nifti import write_nifti
from tests.collection.clinical_data import write_labels_as_rtstruct, write_labels_as_seg, write_scan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two series of one frame of reference, as one visit has them, and a SEG and an RTSTRUCT on the first."""
    series, labels = write_scan(tmp_path / "src/one", 1)
    write_labels_as_seg(tmp_path / "src/labels/seg.dcm", series, labels)
    write_labels_as_rtstruct(tmp_path / "src/labels/rt.dcm", series, labels)
    write_scan(tmp_path / "src/two", 2)
    frame = series.instances[0].FrameOfReferenceUID
    for path in (tmp_path / "src/two").iterdir():
        edit(path, FrameOfReferenceUID=frame)
    return tmp_path / "src"


def edit(path: Path, **changes: object) -> None:
    header = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.save_as(path)


def matched(found: SourceIndex, matches: LabelMatches) -> dict[str, set[str]]:
    """Names of the label files by the folder of their series."""
    return {found.display_path(found.series[k].folder): {f.path.name for f in v} for k, v in matches.by_series.items()}


def reasons(matches: LabelMatches) -> dict[str, str]:
    return {Path(line.source).name: line.reason for line in matches.entries}


def match(root: Path, table: Path | None = None) -> tuple[dict[str, set[str]], dict[str, str]]:
    found = index_source(root)
    matches = match_labels(found, table)
    return matched(found, matches), reasons(matches)


def test_the_images_that_a_label_refers_to_decide(root: Path) -> None:
    assert match(root) == ({"one": {"seg.dcm", "rt.dcm"}}, {})


def test_a_label_of_images_that_are_not_there_is_refused_although_the_frame_of_reference_is(root: Path) -> None:
    for path in (root / "one").iterdir():
        path.unlink()
    assert match(root) == (
        {},
        dict.fromkeys(("seg.dcm", "rt.dcm"), "The SEG refers to images that the source folder does not hold.")
        | {"rt.dcm": "The RTSTRUCT refers to images that the source folder does not hold."},
    )


def test_without_images_the_series_it_names_decides(root: Path) -> None:
    header = pydicom.dcmread(root / "labels/rt.dcm")
    (frame,) = header.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    del series.ContourImageSequence
    header.save_as(root / "labels/rt.dcm")
    assert match(root)[0]["one"] == {"seg.dcm", "rt.dcm"}


def test_without_images_and_series_only_a_lone_frame_of_reference_decides(root: Path) -> None:
    header = pydicom.dcmread(root / "labels/rt.dcm")
    del header.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    header.save_as(root / "labels/rt.dcm")
    found, told = match(root)
    assert found == {"one": {"seg.dcm"}}
    assert told["rt.dcm"].startswith("The RTSTRUCT refers to frame of reference of 2 series (2.25.")
    for path in (root / "two").iterdir():
        edit(path, FrameOfReferenceUID="1.2.3")
    assert match(root)[0] == {"one": {"seg.dcm", "rt.dcm"}}


def test_a_label_on_images_of_two_series_is_refused(root: Path) -> None:
    header = pydicom.dcmread(root / "labels/seg.dcm")
    other = pydicom.dcmread(next((root / "two").iterdir()))
    header.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = other.SOPInstanceUID
    header.save_as(root / "labels/seg.dcm")
    found, told = match(root)
    assert found == {"one": {"rt.dcm"}}
    assert told["seg.dcm"].startswith("The SEG refers to images of 2 series")


def test_a_nifti_file_belongs_to_the_only_series_of_its_folder(root: Path) -> None:
    series, labels = write_scan(root / "three/dicom", 3)
    write_nifti(root / "three/label.nii.gz", labels, series.volume.affine)
    write_nifti(root / "two/label.nii.gz", labels, series.volume.affine)
    write_nifti(root / "labels/label.nii.gz", labels, series.volume.affine)
    write_nifti(root / "top.nii.gz", labels, series.volume.affine)
    found, told = match(root)
    assert found == {"one": {"seg.dcm", "rt.dcm"}, "two": {"label.nii.gz"}, "three/dicom": {"label.nii.gz"}}
    assert told["label.nii.gz"].startswith("Its folder holds 0 image series and 1 NIfTI file(s)")
    assert told["top.nii.gz"].startswith("Its folder holds 3 image series and 4 NIfTI file(s)")
    write_nifti(root / "two/second.nii.gz", labels, series.volume.affine)
    assert "two" not in match(root)[0]


def test_the_csv_is_believed_and_keeps_other_labels_away(root: Path, tmp_path: Path) -> None:
    uid = next(key for key, s in index_source(root).series.items() if s.folder.name == "two")
    table = tmp_path / "m.csv"
    table.write_text(f"\ufeffscan,label\n{uid},labels/seg.dcm\n\n", encoding="utf-8")
    assert match(root, table) == ({"two": {"seg.dcm"}, "one": {"rt.dcm"}}, {})
    table.write_text("scan,label\none,labels/seg.dcm\n")
    assert match(root, table) == (
        {"one": {"seg.dcm"}},
        {"rt.dcm": "The CSV of --matches names another label for its scan."},
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("series,mask\none,labels/seg.dcm\n", "must have the columns scan,label"),
        ("scan,label\none,labels/none.dcm\n", "line 2: there is no label file 'labels/none.dcm'"),
        ("scan,label\n\n1.2.3,labels/seg.dcm\n", "line 3: '1.2.3' is neither the UID of a series"),
        ("scan,label\n.,labels/seg.dcm\n", "line 2: folder '.' holds 2 image series"),
        ("scan,label\none,labels/seg.dcm\ntwo,labels/seg.dcm\n", "line 3: label 'labels/seg.dcm' is named for two"),
        ("scan,label\none,one/IM0001.dcm\n", "neither a SEG nor an RTSTRUCT"),
        ("scan,label\none,notes.txt\n", "not a label file: neither NIfTI nor DICOM"),
        ("scan,label\nnotes.txt,labels/seg.dcm\n", "'notes.txt' is a file, but not a NIfTI image"),
        ("scan,label\none,labels/seg.dcm,3\n", "line 2: two columns are expected"),
        ("scan,label\none,\n", "scan 'one' has no label"),
    ],
)
def test_a_row_that_cannot_be_followed_stops_the_collection(
    content: str, sentence: str, root: Path, tmp_path: Path
) -> None:
    (root / "notes.txt").write_text("notes")
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(InputError) as refused:
        match(root, tmp_path / "m.csv")
    assert sentence in str(refused.value)


def test_a_structure_outlined_by_two_readers_leaves_its_scan_unlabelled(root: Path, tmp_path: Path) -> None:
    from semiseg.collection import collect

    collected = collect(root, tmp_path / "data")
    told = [line.reason for line in collected.entries if (line.status, line.what) == ("refused", "label")]
    assert len(told) == 1
    assert "is outlined in 2 files (labels/rt.dcm, labels/seg.dcm)" in told[0]
    assert not [line for line in collected.entries if line.status == "labelled"]


def test_structures_of_one_scan_may_come_from_several_files(tmp_path: Path) -> None:
    from semiseg.collection import collect
    from semiseg.dataset import load_dataset
    from semiseg.volumes.nifti import read_labels

    series, labels = write_scan(tmp_path / "src/one", 1)
    only = [np.where(labels == value, labels, 0) for value in (1, 2)]
    write_labels_as_rtstruct(tmp_path / "src/a.dcm", series, only[0])
    write_labels_as_rtstruct(tmp_path / "src/b.dcm", series, only[1])
    collect(tmp_path / "src", tmp_path / "data")
    (case,) = load_dataset(tmp_path / "data").cases.values()
    assert case.label is not None
    np.testing.assert_array_equal(read_labels(case.label).array, only[0] + only[1])
