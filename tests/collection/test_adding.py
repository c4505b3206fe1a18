"""A dataset is there whole or not at all, and grows without losing anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from semiseg.collection import collect
from semiseg.dataset import load_dataset
from semiseg.errors import DatasetError
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.nifti import read_labels
from tests.collection.clinical_data import (
    dataset_errors,
    find_case_id,
    find_lines,
    make_rtstruct,
    read_tree,
    trace_contours,
    write_scan,
)


def test_an_interrupted_run_leaves_nothing(clinic: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, of: int | None) -> None:
        if what == "Reading scans" and done == 2:
            assert list((tmp_path / ".data.part/imagesTr").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(clinic, tmp_path / "data", progress=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


def test_a_dataset_is_never_replaced(clinic: Path, tmp_path: Path) -> None:
    collect(clinic, tmp_path / "data")
    before = read_tree(tmp_path / "data")
    with pytest.raises(DatasetError, match="--add extends"):
        collect(clinic, tmp_path / "data")
    assert read_tree(tmp_path / "data") == before


def test_add_brings_new_scans_and_first_labels_and_leaves_the_rest(clinic: Path, tmp_path: Path) -> None:
    first = collect(clinic, tmp_path / "data")
    old = {p: p.read_bytes() for p in (tmp_path / "data").rglob("*.nii.gz")}
    series = read_series(sorted((clinic / "c").glob("IM*.dcm")))
    mask = np.zeros(series.volume.shape, dtype=bool)
    mask[5:9, 6:12, 2:5] = True
    struct = make_rtstruct(series, {"Spleen": trace_contours(mask, series.volume.affine), "other": []})
    struct.save_as(clinic / "late.dcm", enforce_file_format=True)
    write_scan(clinic / "d", 8)
    again = collect(clinic, tmp_path / "data", add=True)
    dataset = load_dataset(tmp_path / "data")
    assert len(dataset.cases) == 4 and dataset_errors(tmp_path / "data") == []
    assert [(s.label, s.name) for s in dataset.segments] == [(1, "kidneys"), (2, "liver"), (3, "spleen")]
    late = dataset.cases[find_case_id(first, "c")]
    assert late.label is not None
    np.testing.assert_array_equal(read_labels(late.label).array, np.where(mask, 3, 0))
    assert dataset.cases[find_case_id(again, "d")].label is None
    assert {line.case for line in find_lines(again, "already there", "scan")} == {
        find_case_id(first, f) for f in ("a/x", "b/deep/er")
    }
    assert all(path.read_bytes() == content for path, content in old.items())


def test_add_needs_the_mapping_and_the_same_channels(clinic: Path, tmp_path: Path) -> None:
    collect(clinic, tmp_path / "data")
    with pytest.raises(DatasetError, match="does not hold the case ids"):
        collect(clinic, tmp_path / "data", mapping=tmp_path / "lost.csv", add=True)
    document = json.loads((tmp_path / "data/dataset.json").read_text())
    document["channel_names"] = {"0": "CT"}
    (tmp_path / "data/dataset.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="has the channels CT, the source MR"):
        collect(clinic, tmp_path / "data", add=True)


def test_add_that_is_cut_short_leaves_the_dataset_as_it_was(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(clinic, tmp_path / "data")
    before = load_dataset(tmp_path / "data")
    write_scan(clinic / "d", 8)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(sys.modules["semiseg.collection.collect"], "atomic_file", full)
    with pytest.raises(OSError, match="No space"):
        collect(clinic, tmp_path / "data", add=True)
    assert load_dataset(tmp_path / "data") == before
    monkeypatch.undo()
    collect(clinic, tmp_path / "data", add=True)
    assert len(load_dataset(tmp_path / "data").cases) == 4 and dataset_errors(tmp_path / "data") == []
