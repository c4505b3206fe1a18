"""Distillation: its loss against the definition, who learns, and what the manifest says of the teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.errors import BundleError
from tests.trainer.factories import (
    build_method,
    clone,
    load_run_weights,
    make_batch,
    make_tiny_plan,
    make_tiny_recipe,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from tests.trainer.tumour_dataset import tumour_recipe, write_tumours
from trainer.errors import RecipeError
from trainer.methods.distil import Distil
from trainer.methods.method import SegmentationTask
from trainer.targets import OverlappingRegions

SMALLER = {"kind": "unet", "channels": [4, 6], "residual_units": 0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on phantoms."""
    folder = tmp_path_factory.mktemp("teacher")
    train_on_cpu(
        write_phantoms(folder / "data"), make_tiny_recipe("supervised", {"updates": 40, "seed": 3}), folder / "run"
    )
    return folder / "run"


def distil(teacher: Path, outputs: int, **switches: object) -> Distil:
    method = build_method(
        make_tiny_recipe("distil", {"student": SMALLER}, teacher=str(teacher), **switches), outputs=outputs
    )
    assert isinstance(method, Distil)
    return method


def outputs_of(run: Path) -> int:
    from semiseg.bundle.bundle import read_manifest

    return read_manifest(run / "run.json").outputs


def softmax(values: np.ndarray) -> np.ndarray:
    odds = np.exp(values - values.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_soft_loss_is_that_of_the_paper_for_classes(teacher: Path, temperature: float) -> None:
    outputs = outputs_of(teacher)
    method = distil(teacher, outputs, temperature=temperature)
    own, taught = (torch.randn(2, outputs, 3, 4, 5, generator=torch.Generator().manual_seed(k)) * 3 for k in (0, 1))
    p, q = (softmax(x.double().numpy() / temperature) for x in (taught, own))
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert float(method.soft_loss(own, taught)) == pytest.approx(expected, rel=1e-4)
    assert float(method.soft_loss(taught, taught)) == pytest.approx(0, abs=1e-6)


def test_the_soft_loss_is_binary_for_regions(tmp_path: Path) -> None:
    train_on_cpu(write_tumours(tmp_path / "data"), tumour_recipe(updates=2), tmp_path / "run")
    recipe = tumour_recipe("distil", methods={"distil": {"teacher": str(tmp_path / "run"), "temperature": 3.0}})
    method = Distil(recipe, SegmentationTask(2, OverlappingRegions(3), 2, 4, 4))
    own, taught = (torch.randn(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(k)) * 3 for k in (0, 1))
    p, q = (1 / (1 + np.exp(-x.double().numpy() / 3.0)) for x in (taught, own))
    binary = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert float(method.soft_loss(own, taught)) == pytest.approx(9 * binary.mean(axis=1).mean(), rel=1e-4)


def test_a_rising_temperature_leaves_the_size_of_the_gradient(teacher: Path) -> None:
    """What T^2 is for: without it the gradient would fall by a hundred between T = 1 and T = 10."""
    outputs = outputs_of(teacher)
    taught = torch.randn(1, outputs, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def size(temperature: float) -> float:
        own = torch.zeros(1, outputs, 4, 4, 4, requires_grad=True)
        distil(teacher, outputs, temperature=temperature).soft_loss(own, taught).backward()
        assert isinstance(own.grad, Tensor)
        return float(own.grad.norm())

    assert 0.5 < size(10.0) / size(1.0) < 2.0


@pytest.mark.parametrize("soft", [0.0, 0.4, 1.0])
def test_the_two_terms_share_the_loss_and_only_the_student_learns(teacher: Path, soft: float) -> None:
    outputs = outputs_of(teacher)
    method = distil(teacher, outputs, soft=soft)
    networks = method.build()
    before = clone(networks["teacher"].state_dict())
    assert weights_equal(before, load_run_weights(teacher)), "it starts as its run left it"
    step_plan = method.step_plan(0)
    assert set(step_plan.rates) == {"student"} and step_plan.composition.unlabelled == 1
    method.prepare(networks, step_plan)
    assert not networks["teacher"].training
    terms = method.loss(networks, make_batch(1, 1, outputs=outputs), step_plan)
    expected = (1 - soft) * float(terms["supervised"]) + soft * float(terms["soft"])
    assert terms["total"].item() == pytest.approx(expected, rel=1e-5)
    terms["total"].backward()
    assert all(p.grad is None for p in networks["teacher"].parameters())
    moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in networks["student"].parameters()]
    assert any(moved)


def test_the_unlabelled_patches_are_taught_too(teacher: Path) -> None:
    outputs = outputs_of(teacher)
    method = distil(teacher, outputs, soft=1.0)
    networks = method.build()
    batch = make_batch(1, 1, outputs=outputs)
    before = float(method.loss(networks, batch, method.step_plan(0))["soft"])
    batch.images[1] += 1.0
    assert float(method.loss(networks, batch, method.step_plan(0))["soft"]) != before
    batch.labels[1] = 1  # nobody looks at these
    after = method.loss(networks, batch, method.step_plan(0))
    batch.labels[1] = 0
    assert method.loss(networks, batch, method.step_plan(0))["total"].item() == after["total"].item()


def test_a_run_learns_what_its_teacher_knows_and_says_who_that_was(teacher: Path, tmp_path: Path) -> None:
    dataset = write_phantoms(tmp_path / "data")
    recipe = make_tiny_recipe("distil", {"student": SMALLER, "updates": 60}, teacher=str(teacher), soft=1.0)
    manifest = train_on_cpu(dataset, recipe, tmp_path / "run")
    taught_by = manifest.provenance.taught_by
    assert taught_by is not None
    assert (taught_by.name, taught_by.method, taught_by.student["channels"]) == ("tiny", "supervised", [4, 8])
    assert manifest.provenance.parameters < taught_by.parameters and taught_by.labelled == 2
    losses = [line["soft"] for line in map(json.loads, (tmp_path / "run/log.jsonl").open()) if "soft" in line]
    assert losses[-1] < 0.3 * losses[0]
    assert make_tiny_plan(dataset, recipe).stages.pretrained() == ()


def test_what_cannot_teach_is_refused(teacher: Path, tmp_path: Path) -> None:
    outputs = outputs_of(teacher)
    with pytest.raises(RecipeError, match="name the finished run whose network is the teacher"):
        build_method(make_tiny_recipe("distil"))
    with pytest.raises(BundleError, match=r"has no run\.json"):
        distil(tmp_path, outputs)
    with pytest.raises(
        RecipeError, match=rf"has 1 channel\(s\) and {outputs} outputs \(softmax\), and these scans need"
    ):
        distil(teacher, outputs + 1)
