"""ICT: what is mixed with what, and the loss written out (Verma et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainer.factories import RecordingNetwork, build_method, make_batch, make_tiny_recipe
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods.ict import ICT


def ict(changes: dict[str, Any] | None = None, **switches: Any) -> ICT:
    method = build_method(make_tiny_recipe("ict", {"batch": 5, **(changes or {})}, **switches))
    assert isinstance(method, ICT)
    return method


PAIRS = {"next": ([2, 3, 4], [3, 4, 2]), "half": ([2], [3])}


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("factor", ["batch", "patch"])
def test_the_loss_written_out(pairs: str, factor: str) -> None:
    method = ict(weight=3.0, ramp=0.0, labelled=2, alpha=1.0, pairs=pairs, factor=factor)
    torch.manual_seed(0)
    networks = method.build()
    with torch.no_grad():
        for p in networks["teacher"].parameters():
            p.add_(0.1 * torch.randn_like(p))
    student = networks["student"]
    networks["student"] = watched = RecordingNetwork(student)
    batch = make_batch(2, 3)
    loss = method.loss(networks, batch, method.step_plan(5))["total"]
    known, mixed = watched.seen
    assert torch.equal(known, batch.images[:2])
    first, second = PAIRS[pairs]
    # lambda is what makes the mixtures that the student was shown.
    apart = batch.images[first] - batch.images[second]
    share = ((mixed - batch.images[second]) * apart).sum((1, 2, 3, 4)) / apart.pow(2).sum((1, 2, 3, 4))
    torch.testing.assert_close(mixed, batch.images[second] + share.view(-1, 1, 1, 1, 1) * apart, rtol=0, atol=1e-5)
    assert bool(((share > 0) & (share < 1)).all())
    if factor == "batch":
        torch.testing.assert_close(share, share[:1].expand_as(share))
    elif len(share) > 1:
        assert not torch.allclose(share, share[:1].expand_as(share), atol=1e-3)
    with torch.no_grad():
        taught = torch.softmax(networks["teacher"](batch.images), 1)
        wide = share.view(-1, 1, 1, 1, 1)
        wanted = wide * taught[first] + (1 - wide) * taught[second]
        consistency = ((torch.softmax(student(mixed), 1) - wanted) ** 2).mean()
        expected = supervised_loss(student(known), batch.labels[:2], method.targets) + 3.0 * consistency
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_share_of_each_patch_has_the_beta_distribution_of_alpha() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Two classes whose odds are the patch."""
            seen.append(x.mean((1, 2, 3, 4)))
            return torch.cat([x, torch.zeros_like(x), torch.zeros_like(x)], dim=1)

    seen: list[Tensor] = []
    method = ict(alpha=0.2, factor="patch")
    images = torch.tensor([0.0, 1.0]).repeat(1000).view(-1, 1, 1, 1, 1)
    torch.manual_seed(0)
    method.mixed({"student": Constant(), "teacher": Constant()}, images)
    share = seen[1].numpy()
    # Var of Beta(a, a) is 1 / (4 (2a + 1)): 0.1786 for 0.2, and 0.083 for an even share.
    assert np.mean(share) == pytest.approx(0.5, abs=0.03)
    assert np.var(share) == pytest.approx(1 / (4 * 1.4), abs=0.01)


def test_only_the_student_learns() -> None:
    method = ict(weight=1.0, ramp=0.0)
    torch.manual_seed(0)
    networks = method.build()
    method.loss(networks, make_batch(2, 3), method.step_plan(0))["total"].backward()
    assert all(p.grad is None for p in networks["teacher"].parameters())
    assert max(float(p.grad.abs().max()) for p in networks["student"].parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("changes", [{"batch": 2}, {"batch": 4, "accumulate": 2}])
def test_a_part_with_one_unlabelled_patch_has_nothing_to_mix_it_with(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="ict needs 2 unlabelled"):
        ict(changes)
