"""Scans of a training on their way to worker processes."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.factories import make_tiny_recipe, write_phantoms
from trainer.batch_stream import prepare_training_cases
from trainer.cases import PreparedCase
from trainer.mapped_arrays import ArrayFile, from_file_reference, map_array, to_file_reference
from trainer.patches import BatchComposition, PatchSampler, PatchSource, load_batches
from trainer.plan import make_plan


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    image = np.random.default_rng(0).normal(size=(1, 60, 60, 40)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", (image[0] > 0).astype(np.uint8))
    places = (np.array([[1, 2, 3]], np.int32),)
    image, labels = map_array(tmp_path / "image.npy"), map_array(tmp_path / "labels.npy")
    return PreparedCase("s1", image, labels, places, (1.0, 2.0, 3.0))


def test_mapped_scan_travels_as_the_name_of_its_file(case: PreparedCase) -> None:
    sent = pickle.dumps(case)
    assert len(sent) < 2000 < case.image.nbytes
    there = pickle.loads(sent)
    assert isinstance(there.image, np.memmap) and there.image.filename == case.image.filename
    np.testing.assert_array_equal(there.image, case.image)
    np.testing.assert_array_equal(there.labels, case.labels)
    np.testing.assert_array_equal(there.segment_voxels[0], case.segment_voxels[0])
    assert (there.case_id, there.spacing, there.shape) == (case.case_id, case.spacing, case.shape)


def test_array_in_memory_travels_as_it_is() -> None:
    array = np.arange(3)
    assert to_file_reference(array) is array and from_file_reference(array) is array
    assert to_file_reference(None) is None
    assert from_file_reference(ArrayFile) is ArrayFile


def test_pseudo_labels_travel_as_the_names_of_their_files(case: PreparedCase, tmp_path: Path) -> None:
    labels = map_array(tmp_path / "labels.npy")
    source = PatchSource(make_tiny_recipe("supervised"), {"s1": case}, 2, "constant", {"m": {"s1": labels}}, "m")
    sent = pickle.dumps(source)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent)._pseudo["m"]["s1"], labels)


def test_worker_that_is_started_anew_makes_the_same_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows and macOS: bit for bit those that are made without workers."""
    recipe = make_tiny_recipe("mean_teacher")
    from semiseg.dataset import make_split

    dataset = write_phantoms(tmp_path / "data")
    plan = make_plan(dataset, make_split(dataset, labelled=2), recipe)
    cases = prepare_training_cases(plan, tmp_path / "cache", None)
    source = PatchSource(recipe, cases, 2, "constant")
    draws = PatchSampler(recipe, cases, plan.split.labelled, plan.unlabelled)
    steps = [draws.requests(step, BatchComposition(1, 1), BatchComposition(step, step)) for step in range(2)]
    alone = list(load_batches(source, steps, 0, 0, False))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        beside = list(load_batches(source, steps, 0, 1, False))
    finally:
        multiprocessing.set_start_method(before, force=True)
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.cases == other.cases
