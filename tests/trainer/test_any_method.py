"""Any method carries any student; patches, pools and slice axes; stopping early."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semiseg.dataset import Dataset, load_dataset
from semiseg.volumes.nifti import write_nifti
from tests.trainer.factories import (
    ALL_METHODS,
    SAM_CONFIG,
    make_recipe_for,
    make_tiny_plan,
    train_on_cpu,
    write_phantoms,
)
from trainer.errors import RecipeError
from trainer.patches import Batch

STUDENTS: dict[str, dict[str, Any]] = {
    "unet": {"student": {"kind": "unet", "channels": [4, 8], "residual_units": 0}, "patch": [16, 16, 8]},
    "vnet": {"student": {"kind": "vnet", "norm": "instance"}, "patch": [32, 16, 16]},
    "resnet_vnet": {"student": {"kind": "resnet_vnet", "norm": "instance"}, "patch": [32, 16, 16]},
    "segresnet": {"student": {"kind": "segresnet", "filters": 8, "blocks_down": [1, 1]}, "patch": [16, 16, 8]},
    "dynunet": {"student": {"kind": "dynunet", "channels": [4, 6, 8]}, "patch": [16, 16, 8]},
    "unetr": {
        "student": {"kind": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "heads": 2},
        "patch": [32, 16, 16],
    },
    "swinunetr": {"student": {"kind": "swinunetr", "feature_size": 12}, "patch": [64, 32, 32]},
    "outside": {
        "student": {
            "kind": "custom",
            "function": "tests.trainer.test_students:thin",
            "several_sizes": True,
            "modules": {"deepest": "first", "features": "last"},
            "encoding": ["first"],
        },
        "patch": [16, 16, 8],
    },
    "unet3d": {"student": {"kind": "unet3d", "channels": [4, 8]}, "patch": [16, 16, 8]},
}
THREE_LEVELS_OF: dict[str, dict[str, Any]] = {
    "unet": {"student": {"kind": "unet", "channels": [4, 8, 8], "residual_units": 0}},
    "segresnet": {"student": {"kind": "segresnet", "filters": 8, "blocks_down": [1, 1, 1]}},
    "unet3d": {"student": {"kind": "unet3d", "channels": [4, 8, 8]}},
}
FIXED = {"unetr", "swinunetr"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


def pairs() -> Iterator[Any]:
    """Every method with every student; a pass through swinunetr takes seconds, so that most of its pairs are long.

    So are the comparators with students that differ from unet in what the other methods have shown.
    """
    for method, student in itertools.product(ALL_METHODS, STUDENTS):
        long = student == "swinunetr" and method != "magicnet"
        long |= method == "magicnet" and student in ("vnet", "resnet_vnet")
        long |= (
            method in ("ict", "urpc", "mcnet", "admt", "dualfete", "mn_2d", "cfr_ft", "atlas", "committee")
            and student != "unet"
        )
        yield pytest.param(method, student, marks=pytest.mark.long if long else ())


@pytest.mark.parametrize(("method", "student"), pairs())
def test_every_method_trains_every_student_or_refuses_it_by_name(dataset: Dataset, method: str, student: str) -> None:
    section = STUDENTS[student]
    if method == "magicnet":
        if student in FIXED:
            with pytest.raises(RecipeError, match=f"a {student} takes the patch's size only"):
                make_tiny_plan(dataset, make_recipe_for(method, section))
            return
        section = {**section, "patch": [2 * side for side in section["patch"]] if "vnet" in student else [16, 16, 16]}
    if method == "urpc":
        if student == "outside":
            with pytest.raises(RecipeError, match=r"urpc reads coarser logits: the student \(custom\) does not"):
                make_tiny_plan(dataset, make_recipe_for(method, section))
            return
        section = {**section, **THREE_LEVELS_OF.get(student, {})}
    switches = (
        {"sam": {**SAM_CONFIG, "side": 256}} if method in ("cfr", "cfr_ft") else {}
    )  # a canvas for the largest of the patches
    plan = make_tiny_plan(dataset, make_recipe_for(method, section, **switches))
    torch.manual_seed(0)
    networks = plan.stages.build()
    last = plan.stages.steps - 1
    for step in (last,) if student == "swinunetr" else (0, last):  # it takes seconds a pass
        step_plan = plan.stages.step_plan(step)
        images = torch.randn((4, 1, *plan.recipe.size()), generator=torch.Generator().manual_seed(1))
        labels = (images[:, 0] > 1).long() + (images[:, 0] > 2)
        where = torch.tensor([0.0, 1.0]).expand(4, 3, 2)
        views = dict.fromkeys(("strong", "stronger"), images + 0.1)
        guides = {"cfr": labels, "atlas": labels, "committee": labels}
        batch = Batch(images, labels, step_plan.composition.labelled, ("scan",) * 4, step, where, guides, views)
        plan.stages.hand_over(networks, step)
        plan.stages.prepare(networks, step_plan, step)
        plan.stages.loss(networks, batch, step_plan)["total"].backward()
        plan.stages.after_update(networks, step_plan, step)
    gradients = [p.grad for p in networks["student"].parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


# --- slices, patches, pools ---------------------------------------------------------------------------------------


def test_thick_sagittal_slices_are_found_and_the_2d_network_looks_along_them(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for k in range(4):
        random = np.random.default_rng(k)
        image = random.normal(size=(8, 24, 20)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[2:5, 8:16, 6:14] = 1
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        (folder / "labelsTr").mkdir(exist_ok=True)
        write_nifti(folder / "imagesTr" / f"s{k}.nii.gz", image + 3 * labels, np.diag([6.0, 1.0, 1.0, 1.0]))
        write_nifti(folder / "labelsTr" / f"s{k}.nii.gz", labels, np.diag([6.0, 1.0, 1.0, 1.0]))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "disc"}}))
    (folder / "split.json").write_text(json.dumps({"test": ["s3"], "labelled": {"1": ["s0"]}}))
    dataset = load_dataset(folder)
    thick = {"student": {"kind": "unet", "channels": [4, 8], "strides": [[1, 2, 2]], "residual_units": 0}}
    plan = make_tiny_plan(dataset, make_recipe_for("mn", {**thick, "patch": "auto", "updates": 8}), labelled=1)
    assert plan.preprocessing.slice_axis == 0
    assert plan.recipe.patch == (8, 24, 20)
    manifest = train_on_cpu(
        dataset, make_recipe_for("mn", {**thick, "patch": "auto", "updates": 8}), tmp_path / "run", labelled=1
    )
    assert manifest.preprocessing.slice_axis == 0
    assert manifest.divisor == (1, 2, 2)


def test_a_patch_is_rounded_up_to_what_the_student_needs(dataset: Dataset) -> None:
    deep = {"student": {"kind": "unet", "channels": [4, 4, 4, 4], "residual_units": 0}}
    assert make_tiny_plan(dataset, make_recipe_for("supervised", {**deep, "patch": [9, 16, 17]})).recipe.patch == (
        16,
        16,
        24,
    )


def test_a_transductive_recipe_adds_the_images_of_the_test_scans_and_says_so(dataset: Dataset, tmp_path: Path) -> None:
    inductive = make_tiny_plan(dataset, make_recipe_for("mean_teacher"))
    plan = make_tiny_plan(dataset, make_recipe_for("mean_teacher", {"transductive": True}))
    assert not set(inductive.unlabelled) & set(inductive.split.test)
    assert set(plan.unlabelled) == {*inductive.unlabelled, *plan.split.test}
    assert not set(plan.unlabelled) & set(plan.split.development)
    manifest = train_on_cpu(dataset, make_recipe_for("mean_teacher", {"transductive": True}), tmp_path / "run")
    assert manifest.provenance.transductive


def test_early_stopping_needs_validation_scans(dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match="no validation list"):
        make_tiny_plan(dataset, make_recipe_for("supervised", {"patience": 2}))


def test_early_stopping_stops(dataset: Dataset, tmp_path: Path) -> None:
    document = json.loads((dataset.folder / "split.json").read_text())
    document["validation"] = [document["labelled"]["2"][1]]  # out of the budget of two labels
    document["labelled"] = {"2": document["labelled"]["2"]}
    split = tmp_path / "split.json"
    split.write_text(json.dumps(document))
    changes = {"updates": 400, "validate_every": 2, "patience": 2, "optimiser": {"rate": 1e-9}}
    steps: list[int] = []
    train_on_cpu(
        dataset,
        make_recipe_for("supervised", changes),
        tmp_path / "run",
        split=split,
        report=lambda step, total, values: steps.append(step),
    )
    assert steps[-1] == 6, "the first validation is the best, two more are not better"
    train_on_cpu(
        dataset,
        make_recipe_for("supervised", changes),
        tmp_path / "run",
        split=split,
        resume=True,
        report=lambda step, total, values: steps.append(step),
    )
    assert steps[-1] == 6, "a run that stopped early stays stopped"
