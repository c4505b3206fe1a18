"""The training loop: what a run depends on, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semiseg.dataset import Dataset, Split, load_dataset
from semiseg.errors import SemisegError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.volumes.nifti import read_labels, write_nifti
from tests.trainer.factories import (
    SHAPE,
    SPACING,
    build_method,
    load_run_weights,
    make_batch,
    make_tiny_plan,
    make_tiny_recipe,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.errors import RecipeError, TrainingError
from trainer.loop import train
from trainer.plan import make_plan

METHODS = ("supervised", "mean_teacher", "mn")
AFFINE = make_phantom(0, SHAPE, SPACING).image.affine


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset that the test may spoil."""
    return load_dataset(Path(shutil.copytree(dataset.folder, tmp_path / "data")))


def split_document(dataset: Dataset) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((dataset.folder / "split.json").read_text())
    return document


# --- what the weights depend on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [("mn", "other labels"), ("mn", "no NIfTI"), ("mean_teacher", "no NIfTI"), ("supervised", "no NIfTI")],
)
def test_labels_of_unlabelled_scans_are_never_opened(own: Dataset, tmp_path: Path, method: str, kind: str) -> None:
    recipe = make_tiny_recipe(method, {"foreground": 1.0})
    train_on_cpu(own, recipe, tmp_path / "before")
    unlabelled = split_document(own)["unlabelled"]["2"]
    assert len(unlabelled) == 4
    for case_id in unlabelled:
        label = own.case(case_id).label
        assert label is not None
        if kind == "no NIfTI":
            label.write_bytes(b"this is no NIfTI file")
        else:
            write_nifti(label, 3 - read_labels(label).array.astype(np.uint8), AFFINE)
    train_on_cpu(own, recipe, tmp_path / "after")
    assert weights_equal(load_run_weights(tmp_path / "before"), load_run_weights(tmp_path / "after"))


def test_labels_of_labelled_scans_do_reach_the_weights(own: Dataset, tmp_path: Path) -> None:
    train_on_cpu(own, make_tiny_recipe("supervised"), tmp_path / "before")
    label = own.case(split_document(own)["labelled"]["2"][0]).label
    assert label is not None
    write_nifti(label, np.ones(SHAPE, np.uint8), AFFINE)
    train_on_cpu(own, make_tiny_recipe("supervised"), tmp_path / "after")
    assert not weights_equal(load_run_weights(tmp_path / "before"), load_run_weights(tmp_path / "after"))


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_recipe_end_with_the_same_weights(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = make_tiny_recipe(method, {"augmentation": {"rotate": 20, "noise": 0.1}})
    for name in ("a", "b"):
        train_on_cpu(dataset, recipe, tmp_path / name, cache=tmp_path / "cache")
        torch.rand(3)  # what happened before in the process does not matter
    assert weights_equal(load_run_weights(tmp_path / "a"), load_run_weights(tmp_path / "b"))
    train_on_cpu(dataset, recipe.model_copy(update={"seed": 1}), tmp_path / "c")
    assert not weights_equal(load_run_weights(tmp_path / "a"), load_run_weights(tmp_path / "c"))


def test_worker_processes_do_not_change_the_weights(dataset: Dataset, tmp_path: Path) -> None:
    for workers in (0, 2):
        train_on_cpu(dataset, make_tiny_recipe("mn", {"workers": workers}), tmp_path / str(workers))
    assert weights_equal(load_run_weights(tmp_path / "0"), load_run_weights(tmp_path / "2"))


def test_one_process_may_train_in_one_precision_after_another(dataset: Dataset, tmp_path: Path) -> None:
    optimiser = {"rate": 0.01, "clip_norm": 1.0}
    kept = {}
    for precision in ("bf16", "fp32"):
        recipe = make_tiny_recipe("mn", {"precision": precision, "optimiser": optimiser, "updates": 4})
        train_on_cpu(dataset, recipe, tmp_path / precision)
        kept[precision] = load_run_weights(tmp_path / precision)
        assert all(v.dtype == torch.float32 and bool(torch.isfinite(v).all()) for v in kept[precision].values())
    assert not weights_equal(kept["bf16"], kept["fp32"])


def test_half_precision_is_refused_on_a_cpu(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="precision: fp16 needs a GPU"):
        train_on_cpu(dataset, make_tiny_recipe(changes={"precision": "fp16"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- gradient accumulation ----------------------------------------------------------------------------------------


def gradients(parts: int, **switches: Any) -> dict[str, torch.Tensor]:
    """The student's gradients of one M&N batch taken in ``parts``, as the loop adds them up."""
    method = build_method(make_tiny_recipe("mn", {"batch": 4}, lrg="fixed", fixed_unlabelled=2, **switches))
    torch.manual_seed(0)
    networks = method.build()
    step_plan = next(t for t in map(method.step_plan, range(method.steps)) if t.stage == "cotrain-student")
    for network in networks.values():
        network.eval()  # what depends on the composition of a batch (batch norm, dropout) aside
    batch = make_batch(2, 2)
    for part in batch.parts(parts):
        (method.loss(networks, part, step_plan)["total"] * (len(part) / len(batch))).backward()
    return {n: p.grad for n, p in networks["student"].named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_loss_that_is_a_mean_has_the_same_gradient_in_parts(parts: int) -> None:
    whole, split = gradients(1, weight_dice=0.0), gradients(parts, weight_dice=0.0)
    assert whole.keys() == split.keys()
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-6)


def test_dice_is_pooled_over_each_part_so_its_gradient_differs() -> None:
    whole, split = gradients(1, weight_kl=0.0), gradients(2, weight_kl=0.0)
    assert max(float((whole[n] - split[n]).abs().max()) for n in whole) > 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [2, 3])
def test_any_method_trains_in_parts(dataset: Dataset, tmp_path: Path, method: str, accumulate: int) -> None:
    switches = {"labelled": 1} if method == "mean_teacher" else {}
    train_on_cpu(
        dataset, make_tiny_recipe(method, {"batch": 3, "accumulate": accumulate}, **switches), tmp_path / "run"
    )
    assert all(bool(torch.isfinite(v).all()) for v in load_run_weights(tmp_path / "run").values())


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_scans(dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_tiny_recipe("supervised", {"optimiser": {"rate": 1e30}, "updates": 20})
    with pytest.raises(TrainingError, match=r"not finite at step \d+, on patches of phantom_\d+.*semiseg data check"):
        train_on_cpu(dataset, recipe, tmp_path / "run")


def test_a_scan_with_nan_is_refused_by_name(own: Dataset, tmp_path: Path) -> None:
    case = split_document(own)["unlabelled"]["2"][0]
    write_nifti(own.case(case).image, np.full(SHAPE, np.nan, np.float32), AFFINE)
    with pytest.raises(SemisegError, match=case):
        train_on_cpu(own, make_tiny_recipe("supervised"), tmp_path / "run")


def test_a_labelled_scan_without_a_label_file_is_refused_by_name(own: Dataset, tmp_path: Path) -> None:
    case = split_document(own)["labelled"]["2"][0]
    label = own.case(case).label
    assert label is not None
    label.unlink()
    with pytest.raises(SemisegError, match=rf"{case}.*no label file"):
        train_on_cpu(own, make_tiny_recipe("supervised"), tmp_path / "run")
    cases = {**own.cases, case: type(own.case(case))(case, own.case(case).image, None)}
    bare = Dataset(own.folder, own.name, own.channels, own.segments, cases)
    others = tuple(c for c in own.cases if c != case)
    plan = make_plan(bare, Split((case,), others), make_tiny_recipe("supervised"))
    with pytest.raises(RecipeError, match=rf"{case}: The split lists it as labelled, but it has no label file"):
        train(plan, tmp_path / "bare", device="cpu")


def test_a_label_on_another_grid_is_refused_by_name(own: Dataset, tmp_path: Path) -> None:
    case = split_document(own)["labelled"]["2"][1]
    label = own.case(case).label
    assert label is not None
    write_nifti(label, np.ones((4, 4, 4), np.uint8), AFFINE)
    with pytest.raises(RecipeError, match=rf"{case}.*does not lie on the grid"):
        train_on_cpu(own, make_tiny_recipe("supervised"), tmp_path / "run")


@pytest.mark.parametrize(("device", "complaint"), [("tpu", "no device 'tpu'"), ("cuda", "no GPU that torch can use")])
def test_a_device_that_is_not_there_is_refused(dataset: Dataset, tmp_path: Path, device: str, complaint: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SemisegError, match=complaint):
        train(make_tiny_plan(dataset, make_tiny_recipe("supervised")), tmp_path / "run", device=device)


# --- unusual scans ------------------------------------------------------------------------------------------------


def test_constant_images_train(own: Dataset, tmp_path: Path) -> None:
    for case in own.cases.values():
        write_nifti(case.image, np.full(SHAPE, 7, np.int16), AFFINE)
    train_on_cpu(own, make_tiny_recipe("mn", {"augmentation": {"gamma_probability": 1.0}}), tmp_path / "run")
    assert all(bool(torch.isfinite(v).all()) for v in load_run_weights(tmp_path / "run").values())


@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_scans_smaller_than_the_patch_train(dataset: Dataset, tmp_path: Path, padding: str) -> None:
    changes = {"patch": [24, 20, 16], "preparation": {"padding": padding}}
    manifest = train_on_cpu(dataset, make_tiny_recipe("mn", changes), tmp_path / "run")
    assert manifest.patch == (24, 20, 16)


@pytest.mark.parametrize("method", METHODS)
def test_one_labelled_scan_is_enough(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = make_tiny_recipe(method, {"batch": 4})
    manifest = train(make_tiny_plan(dataset, recipe, labelled=1), tmp_path / "run", device="cpu")
    assert (manifest.provenance.labelled, manifest.provenance.unlabelled) == (1, 5)


@pytest.mark.parametrize("method", METHODS)
def test_without_unlabelled_scans_every_method_trains_on_the_labels(
    dataset: Dataset, tmp_path: Path, method: str
) -> None:
    plan = make_plan(dataset, Split(tuple(dataset.cases)[:2]), make_tiny_recipe(method))
    assert train(plan, tmp_path / "run", device="cpu").provenance.unlabelled == 0


def test_a_segment_that_no_labelled_scan_holds_is_refused_before_training(own: Dataset, tmp_path: Path) -> None:
    for case_id in split_document(own)["labelled"]["2"]:
        label = own.case(case_id).label
        assert label is not None
        labels = read_labels(label).array.astype(np.uint8)
        labels[labels == own.segments[0].label] = 0
        write_nifti(label, labels, AFFINE)
    with pytest.raises(RecipeError, match=f"None of the 2 labelled scans holds {own.segments[0].name}, so no network"):
        train_on_cpu(own, make_tiny_recipe("supervised"), tmp_path / "run")
    others = {s.name: [s.label] for s in own.segments[1:]}
    train_on_cpu(own, make_tiny_recipe("supervised", {"regions": others}), tmp_path / "others")


def test_a_labelled_scan_without_any_foreground_trains_beside_one_with_it(own: Dataset, tmp_path: Path) -> None:
    label = own.case(split_document(own)["labelled"]["2"][0]).label
    assert label is not None
    write_nifti(label, np.zeros_like(read_labels(label).array, dtype=np.uint8), AFFINE)
    train_on_cpu(own, make_tiny_recipe("mn", {"foreground": 1.0}), tmp_path / "run")
