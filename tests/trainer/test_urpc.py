"""URPC: the pyramid, and the loss written out (Luo et al. 2021)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainer.factories import THREE_LEVEL_NETWORK, build_method, make_batch, make_tiny_recipe
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods.method import SegmentationTask
from trainer.methods.urpc import URPC
from trainer.networks.outputs import DeepSupervisionNetwork, further_outputs
from trainer.targets import OverlappingRegions

FOUR_LEVELS = {**THREE_LEVEL_NETWORK, "channels": [4, 6, 8, 8], "strides": [[2, 2, 2], [2, 2, 2], [1, 1, 1]]}


def urpc(changes: dict[str, Any] | None = None, **switches: Any) -> URPC:
    method = build_method(make_tiny_recipe("urpc", {"batch": 4, "student": FOUR_LEVELS, **(changes or {})}, **switches))
    assert isinstance(method, URPC)
    return method


def pyramid(network: torch.nn.Module, images: Tensor) -> list[Tensor]:
    with further_outputs(network) as heard:
        logits = network(images)
    ((_, coarse),) = heard
    sizes = [tuple(c.shape[2:]) for c in coarse]
    assert sizes == [(4, 4, 4), (2, 2, 2)]
    return [logits, *(functional.interpolate(c, (8, 8, 8), mode="trilinear") for c in coarse)]


@pytest.mark.parametrize("divergence", ["from_mean", "to_mean"])
def test_the_loss_written_out(divergence: str) -> None:
    method = urpc(weight=2.0, ramp=0.0, divergence=divergence)
    torch.manual_seed(0)
    networks = method.build()
    for head in networks["student"].heads:  # type: ignore[union-attr]
        torch.nn.init.normal_(head.weight, std=3.0)
    batch = make_batch(2, 2)
    levels = pyramid(networks["student"], batch.images)
    supervised = sum(supervised_loss(y[:2], batch.labels[:2], method.targets) for y in levels) / 3
    p = [torch.softmax(y[2:], 1) for y in levels]
    mean = (p[0] + p[1] + p[2]) / 3
    unsupervised = torch.zeros(())
    for one in p:
        a, b = (mean, one) if divergence == "from_mean" else (one, mean)
        d = (a * (a.log() - b.log())).sum(1, keepdim=True)
        assert float(d.detach().min()) > -1e-5
        w = torch.exp(-d)
        unsupervised = unsupervised + ((one - mean) ** 2 * w).mean() / w.mean() + d.mean()
    expected = supervised + 2.0 * unsupervised / 3
    torch.testing.assert_close(method.loss(networks, batch, method.step_plan(0))["total"], expected)


def test_gradients_of_certain_predictions_are_finite() -> None:
    for method in (urpc(), URPC(urpc().recipe, SegmentationTask(1, OverlappingRegions(3), 2, 4, 12))):
        logits = [torch.full((1, 3, 2, 2, 2), 200.0) * s for s in (1.0, -1.0)]
        logits[0][:, 0] *= -1
        levels = [y.requires_grad_() for y in logits]
        torch.stack(method.consistency(levels)).sum().backward()
        assert all(y.grad is not None and bool(torch.isfinite(y.grad).all()) for y in levels)


def test_levels_that_agree_cost_nothing() -> None:
    y = torch.randn(2, 3, 4, 4, 4)
    rectified, uncertainty = urpc().consistency([y, y.clone(), y.clone()])
    assert float(rectified) == pytest.approx(0.0, abs=1e-7)
    assert float(uncertainty) == pytest.approx(0.0, abs=1e-6)


def test_the_labels_teach_every_level_and_the_unlabelled_patches_too() -> None:
    method = urpc(weight=0.0)
    networks = method.build()
    batch = make_batch(2, 2)
    student = networks["student"]
    assert isinstance(student, DeepSupervisionNetwork)
    method.loss(networks, batch, method.step_plan(0))["total"].backward()
    assert all(float(head.weight.grad.abs().max()) > 0 for head in student.heads)  # type: ignore[union-attr, operator]


def test_a_student_without_coarser_levels_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"urpc reads coarser logits: the student \(unet\) .* three levels"):
        urpc({"student": {"kind": "unet", "channels": [4, 8]}})
