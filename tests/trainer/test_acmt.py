"""AC-MT: the four selections of ambiguous voxels, and what they weigh (Xu et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.trainer.factories import build_method, make_batch, make_tiny_recipe
from tests.trainer.test_uamt import ConstantNetwork
from trainer.errors import RecipeError
from trainer.methods import make_method
from trainer.methods.acmt import ACMT
from trainer.methods.method import SegmentationTask
from trainer.targets import OverlappingRegions

SELECTIONS = ["entropy", "model_uncertainty", "prototype_error", "label_error"]


def acmt(changes: dict[str, Any] | None = None, **switches: Any) -> ACMT:
    method = build_method(make_tiny_recipe("acmt", {"batch": 4, **(changes or {})}, **switches))
    assert isinstance(method, ACMT)
    return method


@pytest.mark.parametrize(
    ("selection", "threshold", "last"),
    [
        ("entropy", "code", 0.95),
        ("model_uncertainty", "code", 0.90),
        ("entropy", "paper", 0.60),
        ("model_uncertainty", "paper", 0.60),
    ],
)
def test_the_threshold_moves_as_released_or_as_printed(selection: str, threshold: str, last: float) -> None:
    method = acmt({"updates": 50}, selection=selection, threshold=threshold)
    assert method.least_entropy(50) == pytest.approx(last)
    assert method.least_entropy(0) == pytest.approx(0.75 + (last - 0.75) * math.exp(-5))


@pytest.mark.parametrize("segments", [1, 2, 13])
@pytest.mark.parametrize("threshold", ["code", "paper"])
@pytest.mark.parametrize("selection", ["entropy", "model_uncertainty"])
def test_a_voxel_between_two_classes_is_ambiguous_for_any_number_of_classes(
    selection: str, threshold: str, segments: int
) -> None:
    recipe = make_tiny_recipe("acmt", {"updates": 100}, noise=0.0, selection=selection, threshold=threshold)
    method = build_method(recipe, outputs=segments + 1)
    assert isinstance(method, ACMT)
    others = [-30.0] * (segments - 1)
    images, teacher = torch.zeros(2, 1, 4, 4, 4), ConstantNetwork(9.0, 0.0, *others)
    for step in (0, 50, 99):
        for student, ambiguous in (
            (ConstantNetwork(3.0, 3.0, *others), True),
            (ConstantNetwork(3.0, 0.0, *others), False),
        ):
            networks = {"student": student, "teacher": teacher}
            loss = method.consistency(networks, student(images), images, method.step_plan(step))
            assert (float(loss.detach()) > 0) is ambiguous


def test_a_certain_student_has_no_ambiguous_voxel_and_a_loss_of_zero() -> None:
    method = acmt(noise=0.0)
    networks = {"student": ConstantNetwork(9.0, 0.0, 0.0), "teacher": ConstantNetwork(0.0, 9.0, 0.0)}
    images = torch.zeros(2, 1, 4, 4, 4)
    value = method.consistency(networks, networks["student"](images), images, method.step_plan(0))
    assert float(value.detach()) == 0.0
    value.backward()
    grad = networks["student"].logits.grad
    assert grad is not None
    assert bool(torch.isfinite(grad).all())


def test_an_uncertain_student_has_to_agree_on_the_mean_over_the_channels() -> None:
    method = acmt(noise=0.0)
    networks = {"student": ConstantNetwork(0.1, 0.0, 0.0), "teacher": ConstantNetwork(0.0, 2.0, 0.0)}
    images = torch.zeros(2, 1, 4, 4, 4)
    p, q = (torch.softmax(n.logits.detach().flatten(), dim=0) for n in networks.values())
    entropy = method.consistency(networks, networks["student"](images), images, method.step_plan(0))
    assert float(entropy.detach()) == pytest.approx(float((p - q).pow(2).mean()), rel=1e-5)
    uncertainty = acmt(noise=0.0, selection="model_uncertainty")
    value = uncertainty.consistency(networks, networks["student"](images), images, method.step_plan(0))
    assert float(value.detach()) == pytest.approx(float((p - q).pow(2).sum()), rel=1e-5), "as released: a sum"


@pytest.mark.parametrize("selection", SELECTIONS)
def test_each_selection_teaches_the_student_alone(selection: str) -> None:
    method = acmt(weight=1.0, ramp=0.0, selection=selection)
    torch.manual_seed(0)
    networks = method.build()
    torch.manual_seed(1)
    networks["teacher"] = method.build()["teacher"]
    step_plan = method.step_plan(0)
    method.prepare(networks, step_plan)
    images = make_batch(0, 4).images
    method.consistency(networks, networks["student"](images), images, step_plan).backward()
    gradients = [p.grad for p in networks["student"].parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert max(float(g.abs().max()) for g in gradients if g is not None) > 1e-7
    assert all(p.grad is None for p in networks["teacher"].parameters())


def test_prototypes_that_agree_with_the_decisions_find_no_error() -> None:
    method = acmt(selection="prototype_error", noise=0.0)
    torch.manual_seed(0)
    teacher = method.build()["teacher"]
    images = make_batch(0, 2).images
    decided = torch.zeros((2, *images.shape[2:]), dtype=torch.long)
    # A teacher that is certain of class 0 everywhere has one prototype, and every voxel is nearest to it.
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
        [p for name, p in teacher.named_parameters() if name.endswith("bias")][-1][:] = torch.tensor([9.0, 0.0, 0.0])
    assert not bool(method.prototype_errors(teacher, images, decided).any())
    assert bool(method.prototype_errors(teacher, images, decided + 1).all())


def test_prototypes_are_made_of_as_many_noisy_passes_as_asked_for() -> None:
    method = acmt(selection="prototype_error", prototype_passes=3)
    teacher = method.build()["teacher"]
    passes: list[None] = []
    teacher.register_forward_hook(lambda *_: passes.append(None))
    images = make_batch(0, 2).images
    method.prototype_errors(teacher, images, torch.zeros((2, *images.shape[2:]), dtype=torch.long))
    assert len(passes) == 3


def test_the_entropy_of_clean_voxels_is_weighted_by_certainty() -> None:
    torch.manual_seed(0)
    networks, images = acmt(selection="prototype_error").build(), make_batch(0, 2).images
    values = []
    for certainty in (0.0, 1.0, 3.0):
        method = acmt(selection="prototype_error", noise=0.0, certainty=certainty)
        found = method.consistency(networks, networks["student"](images), images, method.step_plan(0))
        values.append(float(found.detach()))
    assert values[1] > values[0]
    assert values[2] - values[0] == pytest.approx(3 * (values[1] - values[0]), rel=1e-4)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selections_that_compare_classes_are_refused_for_regions(selection: str) -> None:
    recipe = make_tiny_recipe("acmt", {"batch": 4}, selection=selection)
    task = SegmentationTask(1, OverlappingRegions(2), 2, 4, 12)
    if selection in ("entropy", "model_uncertainty"):
        make_method(recipe, task)
    else:
        with pytest.raises(RecipeError, match="compares exclusive classes"):
            make_method(recipe, task)
