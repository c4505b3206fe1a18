"""UA-MT: which voxels count, and what they weigh (Yu et al. 2019)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.factories import BATCH_NORM_NETWORK, build_method, make_batch, make_tiny_recipe
from trainer.methods.acmt import ACMT
from trainer.methods.uamt import UAMT


class ConstantNetwork(nn.Module):
    """A network whose logits are always the same."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits).reshape(1, -1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N, C, X, Y, Z)."""
        return self.logits.expand(x.shape[0], -1, *x.shape[2:])


def uamt(changes: dict[str, Any] | None = None, **switches: Any) -> UAMT:
    method = build_method(make_tiny_recipe("uamt", {"batch": 4, **(changes or {})}, **switches))
    assert isinstance(method, UAMT)
    return method


def test_the_threshold_rises_from_three_quarters_of_the_largest_entropy_to_all_of_it() -> None:
    method = uamt({"updates": 100})
    assert method.largest_uncertainty(0) == pytest.approx(0.75 + 0.25 * math.exp(-5))  # .7517
    assert method.largest_uncertainty(100) == 1.0
    values = [method.largest_uncertainty(k) for k in range(101)]
    assert values == sorted(values)


@pytest.mark.parametrize("segments", [1, 2, 13])
@pytest.mark.parametrize("update", [0, 50, 100])
def test_a_voxel_between_two_classes_never_counts_and_a_certain_one_always_does(segments: int, update: int) -> None:
    method = build_method(make_tiny_recipe("uamt", {"updates": 100}, noise=0.0), outputs=segments + 1)
    assert isinstance(method, UAMT)
    others = [-30.0] * (segments - 1)
    between, certain = (
        ConstantNetwork(3.0, 3.0, *others),
        ConstantNetwork(3.0, 0.0, *others),
    )  # 0.95 and 0.05: 0.28 bits
    images, limit = torch.zeros(2, 1, 4, 4, 4), method.largest_uncertainty(update)
    assert not bool((method.uncertainty(between, images) < limit - 1e-6).any())
    assert bool((method.uncertainty(certain, images) < limit).all())


@pytest.mark.parametrize(("logits", "counted"), [((9.0, 0.0, 0.0), True), ((0.1, 0.0, 0.0), False)])
def test_where_the_teacher_is_certain_the_student_has_to_agree(logits: tuple[float, ...], counted: bool) -> None:
    method = uamt(noise=0.0)
    networks = {"student": ConstantNetwork(0.0, 3.0, 0.0), "teacher": ConstantNetwork(*logits)}
    images = torch.zeros(2, 1, 4, 4, 4)
    value = method.consistency(networks, networks["student"](images), images, method.step_plan(0))
    p, q = (torch.softmax(n.logits.flatten(), dim=0) for n in networks.values())
    expected = float((p - q).pow(2).sum().detach() / 3) if counted else 0.0
    assert float(value.detach()) == pytest.approx(expected, abs=1e-6)


def test_the_uncertainty_is_that_of_the_mean_of_noisy_passes_with_dropout() -> None:
    method = uamt({"student": BATCH_NORM_NETWORK}, passes=4, noise=0.3)
    torch.manual_seed(0)
    networks = method.build()
    method.prepare(networks, method.step_plan(0))
    images = make_batch(0, 2).images
    torch.manual_seed(5)
    found = method.uncertainty(networks["teacher"], images)
    torch.manual_seed(5)
    passes = [torch.softmax(networks["teacher"](images + method.noise(images)), dim=1) for _ in range(4)]
    assert not torch.equal(passes[0], passes[1])
    mean = torch.stack(passes).mean(0)
    torch.testing.assert_close(found, -(mean * mean.log2()).sum(1))


def test_only_the_student_learns_from_the_consistency() -> None:
    method = uamt(weight=1.0, ramp=0.0)
    torch.manual_seed(0)
    networks = method.build()
    torch.manual_seed(1)
    networks["teacher"] = method.build()["teacher"]
    with torch.no_grad():
        list(networks["teacher"].parameters())[-1][0] += 5.0  # certain of a class, or nothing would count
    batch = make_batch(2, 2)
    logits = networks["student"](batch.images[2:])
    late = method.step_plan(method.recipe.updates - 1)
    method.consistency(networks, logits, batch.images[2:], late).backward()
    weights = [p for name, p in networks["student"].named_parameters() if name.endswith("weight")]
    assert max(float(p.grad.abs().max()) for p in weights if p.grad is not None) > 1e-6
    assert all(p.grad is None for p in networks["teacher"].parameters())


@pytest.mark.parametrize("sure", [True, False])
def test_acmt_takes_the_voxels_that_uamt_leaves(sure: bool) -> None:
    ours, other = uamt(noise=0.0), build_method(make_tiny_recipe("acmt", {"batch": 4}, noise=0.0))
    assert isinstance(other, ACMT)
    said = (9.0, 0.0, 0.0) if sure else (0.1, 0.0, 0.0)
    images = torch.zeros(2, 1, 4, 4, 4)
    # The same network speaks where each of them looks: UA-MT at the teacher, AC-MT at the student.
    of_teacher = {"student": ConstantNetwork(0.0, 3.0, 0.0), "teacher": ConstantNetwork(*said)}
    of_student = {"student": ConstantNetwork(*said), "teacher": ConstantNetwork(0.0, 3.0, 0.0)}
    values = [
        float(m.consistency(n, n["student"](images), images, m.step_plan(0)).detach())
        for m, n in ((ours, of_teacher), (other, of_student))
    ]
    assert (values[0] > 0, values[1] > 0) == (sure, not sure)
