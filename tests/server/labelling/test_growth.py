"""The split grows with the final labels, and the dataset folder changes only where somebody asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import load_dataset, make_split
from semiseg.errors import DatasetError
from semiseg.volumes.nifti import read_labels
from server.labelling.dataset_labels import apply_labels, write_training_view
from tests.datasets import random_labels, write_dataset
from tests.server.labelling.datasets import SPLIT, open_datastore, random_new_label, write_labelled_dataset


def written_split(store) -> dict:
    return json.loads((store.state / "split.json").read_text(encoding="utf-8"))


def test_a_scan_with_a_final_label_joins_the_labelled_ones(tmp_path: Path) -> None:
    store = open_datastore(write_labelled_dataset(tmp_path))
    assert written_split(store)["labelled"] == ["s3"] and store.waiting() == ["s4", "s5", "s6"]
    store.save("s6", random_new_label(6), tag="final", who="anna")
    store.save("s4", random_new_label(4), tag="original", who="model")  # a draft teaches nobody
    assert written_split(store)["labelled"] == ["s3", "s6"] and store.waiting() == ["s4", "s5"]
    assert open_datastore(tmp_path).split() == store.split()
    store.withdraw("s6", "final", "anna")
    assert written_split(store)["labelled"] == ["s3"]


@pytest.mark.parametrize("image", ["s0", "s1", "s2"])
def test_test_development_and_validation_scans_stay_what_they_are(tmp_path: Path, image: str) -> None:
    store = open_datastore(write_labelled_dataset(tmp_path))
    before = written_split(store)
    store.save(image, random_new_label(9), tag="final", who="anna")
    assert written_split(store) == before
    assert {key: before[key] for key in ("test", "development", "validation")} == {
        key: SPLIT[key] for key in ("test", "development", "validation")
    }


def test_labels_that_the_split_keeps_closed_are_not_shown(tmp_path: Path) -> None:
    store = open_datastore(write_labelled_dataset(tmp_path))
    shown = [image for image in store.dataset.cases if store.labels(image)]
    assert shown == ["s2", "s3"]  # s0 and s1 judge; s4 has a label file and is unlabelled


def test_an_annotator_begins_with_the_newest_draft_and_training_uses_the_newest_final(tmp_path: Path) -> None:
    store = open_datastore(write_labelled_dataset(tmp_path))
    store.save("s3", random_new_label(1), tag="original", who="model")
    store.save("s3", random_new_label(2), tag="version_1", who="anna")
    assert store.label("s3", "original").record.version == 2
    assert store.label("s3", "final").record is None  # the dataset's own
    store.save("s3", random_new_label(3), tag="final", who="anna")
    assert store.label("s3", "final").record.version == 3 and store.label("s3", "original").record.version == 2


def test_labelling_may_begin_without_any_label(tmp_path: Path) -> None:
    write_dataset(tmp_path, 0, 3)
    store = open_datastore(tmp_path)
    assert store.waiting() == ["s0", "s1", "s2"]
    store.save("s1", random_new_label(1), tag="final", who="anna")
    assert written_split(store) == {**written_split(store), "test": [], "labelled": ["s1"], "train": ["s0", "s1", "s2"]}


def test_a_split_with_several_lists_needs_a_number(tmp_path: Path) -> None:
    write_dataset(tmp_path, 4, split={"test": ["s0"], "labelled": {"1": ["s1"], "2": ["s1", "s2"]}})
    with pytest.raises(DatasetError, match="--labelled"):
        open_datastore(tmp_path)
    assert open_datastore(tmp_path, labelled=2).split().labelled == ("s1", "s2")
    assert open_datastore(tmp_path, labelled=0).split().labelled == ()


def test_training_sees_the_newest_labels_without_a_change_of_the_dataset(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    before = {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    store = open_datastore(data, tmp_path / "state")
    store.save("s3", random_new_label(30), tag="final", who="anna")
    store.save("s5", random_new_label(50), tag="final", who="anna")
    sums = write_training_view(store, tmp_path / "state" / "training" / "data")
    seen = load_dataset(tmp_path / "state" / "training" / "data")
    split = make_split(seen)
    assert split.labelled == ("s3", "s5") and split.unlabelled == ("s4", "s6") and split.test == ("s0",)
    assert np.array_equal(read_labels(seen.cases["s3"].label).array, random_labels(30))
    assert np.array_equal(read_labels(seen.cases["s2"].label).array, random_labels(2))
    assert seen.cases["s4"].label is None and list(sums) == ["s2", "s3", "s5"]
    assert {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()} == before


def test_applied_labels_lie_in_the_dataset_and_the_replaced_ones_in_the_store(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    store = open_datastore(data, tmp_path / "state")
    for seed, image in ((30, "s3"), (31, "s3"), (50, "s5")):
        store.save(image, random_new_label(seed), tag="final", who="anna")
    assert apply_labels(store, "head") == ["s3", "s5"]
    assert apply_labels(store, "head") == []
    dataset = load_dataset(data)
    assert np.array_equal(read_labels(dataset.cases["s3"].label).array, random_labels(31))
    assert np.array_equal(read_labels(dataset.cases["s5"].label).array, random_labels(50))
    assert dataset.cases["s6"].label is None
    kept = store.store.newest("s3", "dataset")
    assert kept.state == "original" and np.array_equal(read_labels(store.store.file_of(kept)).array, random_labels(3))
    assert store.label("s3", "original") is None  # no annotator begins with it


def test_applying_that_was_killed_is_completed_by_another_call(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    store = open_datastore(data, tmp_path / "state")
    for seed, image in ((30, "s3"), (50, "s5"), (60, "s6")):
        store.save(image, random_new_label(seed), tag="final", who="anna")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.server.labelling.datasets import open_datastore\n"
        "from server.labelling.dataset_labels import apply_labels\n"
        "count = 0\n"
        "def stop(sentence):\n"
        "    global count; count += 1\n"
        "    if count == 2: os._exit(9)\n"
        "apply_labels(open_datastore(Path(sys.argv[1]), Path(sys.argv[2])), 'head', stop)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(data), str(tmp_path / "state")], timeout=120)
    assert ended.returncode == 9
    load_dataset(data)
    assert apply_labels(open_datastore(data, tmp_path / "state"), "head") == ["s6"]
    dataset = load_dataset(data)
    for seed, image in ((30, "s3"), (50, "s5"), (60, "s6")):
        assert np.array_equal(read_labels(dataset.cases[image].label).array, random_labels(seed))


def test_a_label_in_another_format_is_not_replaced_and_nothing_is_changed(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    document = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    document["training"][3]["label"] = "./labelsTr/s3.nrrd"
    (data / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    (data / "labelsTr" / "s3.nii.gz").rename(data / "labelsTr" / "s3.nrrd")
    store = open_datastore(data, tmp_path / "state")
    for seed, image in ((50, "s5"), (30, "s3")):
        store.save(image, random_new_label(seed), tag="final", who="anna")
    with pytest.raises(DatasetError, match="only NIfTI"):
        apply_labels(store, "head")
    assert not (data / "labelsTr" / "s5.nii.gz").exists()
