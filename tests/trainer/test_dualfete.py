"""DualFete: whose label is taken, what feedback is and to whom it goes, all written out (Yi et al. 2026)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.factories import build_method, make_batch, make_tiny_recipe, perturbed_networks
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods.dualfete import TEACHERS, DualFete
from trainer.methods.method import Networks
from trainer.patches import Batch

RATE = 0.05
PLAIN = {"optimiser": {"kind": "sgd", "rate": RATE}}


def dualfete(changes: dict[str, Any] | None = None, **switches: Any) -> DualFete:
    method = build_method(make_tiny_recipe("dualfete", {"batch": 4, **PLAIN, **(changes or {})}, **switches))
    assert isinstance(method, DualFete)
    return method


def decisions(networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Certainties and decisions of the two teachers on the unlabelled patches."""
    with torch.no_grad():
        p, q = (torch.softmax(networks[name](batch.images[batch.labelled :]), 1) for name in TEACHERS)
    (c1, y1), (c2, y2) = p.max(1), q.max(1)
    return c1, y1, c2, y2


def masked(logits: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    """(CE + Dice) / 2 over some voxels, by picking them out."""
    rows = logits.movedim(1, -1)[where]
    wanted = labels[where]
    crossed = nn.functional.cross_entropy(rows, wanted)
    p, y = torch.softmax(rows, 1), nn.functional.one_hot(wanted, 3).float()
    top, below = 2 * (p * y).sum(0), (p * p).sum(0) + (y * y).sum(0)
    return 0.5 * (crossed + 1 - (top / below).mean())


def gain(student: nn.Module, batch: Batch, pseudo: Tensor, where: Tensor, length: float, normalise: bool) -> float:
    """The labelled cross-entropy before minus after a step of a copy of the student."""
    tried = copy.deepcopy(student)
    n = batch.labelled

    def known() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(tried(batch.images[:n]), batch.labels[:n]))

    before = known()
    masked(tried(batch.images[n:]), pseudo, where).backward()
    with torch.no_grad():
        for p in tried.parameters():
            if p.grad is not None:
                norm = float(p.grad.norm()) if normalise else 1.0
                p.sub_(length * p.grad / (norm or 1.0))
    return before - known()


@pytest.mark.parametrize("normalise", [True, False])
def test_all_terms_written_out(normalise: bool) -> None:
    method = dualfete(weight=2.0, ramp=0.0, threshold=0.45, cutmix=0.0, normalise=normalise, step=3.0, feedback=1.5)
    networks = perturbed_networks(method)
    batch = make_batch(2, 2)
    losses = method.loss(networks, batch, method.step_plan(3))
    c1, y1, c2, y2 = decisions(networks, batch)
    pseudo = torch.where(c1 > c2, y1, y2)
    agree = y1 == y2
    everywhere = torch.ones_like(agree)
    assert bool(agree.any()) and bool((~agree).any())

    student = masked(networks["student"](batch.images[2:]), pseudo, everywhere)
    torch.testing.assert_close(losses["student"], student.detach())
    supervised = torch.stack(
        [supervised_loss(networks[t](batch.images[:2]), batch.labels[:2], method.targets) for t in TEACHERS]
    ).sum()
    torch.testing.assert_close(losses["supervised"], supervised.detach())
    sure1, sure2 = c1 >= 0.45, c2 >= 0.45
    assert not bool(sure1.all()) and bool(sure1.any())
    strong, stronger = (networks[t](batch.views[v][2:]) for t, v in zip(TEACHERS, ("strong", "stronger"), strict=True))
    cross = masked(strong, y2, sure2) + masked(stronger, y1, sure1)
    torch.testing.assert_close(losses["cross"], cross.detach())

    areas = {"agreement": agree, "disagreement": ~agree}
    gains = {a: gain(networks["student"], batch, pseudo, w, 3.0 * RATE, normalise) for a, w in areas.items()}
    assert min(abs(value) for value in gains.values()) > 1e-4
    feedback = torch.zeros(())
    told = ((strong, {"agreement": agree & (c1 < c2), "disagreement": ~agree & (c1 > c2)}),)
    told += ((stronger, {"agreement": agree & (c1 >= c2), "disagreement": ~agree & (c1 <= c2)}),)
    for logits, masks in told:
        own = -torch.log_softmax(logits, 1).amax(1)
        for area, mask in masks.items():
            assert bool(mask.any())
            feedback = feedback + gains[area] * own[mask].mean()
    torch.testing.assert_close(losses["feedback"], feedback.detach(), rtol=1e-3, atol=1e-5)
    for area, value in gains.items():
        assert float(losses[f"gain/{area}"]) == pytest.approx(value, abs=1e-5)
    total = student + supervised + 2.0 * cross + 1.5 * feedback
    torch.testing.assert_close(losses["total"], total, rtol=1e-4, atol=1e-5)
    every = [p for network in networks.values() for p in network.parameters()]
    found, wanted = torch.autograd.grad(losses["total"], every), torch.autograd.grad(total, every)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_trying_a_step_leaves_the_student_where_it_was() -> None:
    method = dualfete(step=100.0)
    networks = perturbed_networks(method)
    before = {key: value.clone() for key, value in networks["student"].state_dict().items()}
    method.loss(networks, make_batch(2, 2), method.step_plan(0))
    assert all(torch.equal(value, before[key]) for key, value in networks["student"].state_dict().items())
    assert all(p.grad is None for p in networks["student"].parameters())


def test_right_pseudo_labels_make_a_teacher_more_certain_and_wrong_ones_less() -> None:
    """The student has the labelled patches as unlabelled ones, so that a step on right labels helps with these."""
    method = dualfete(weight=0.0, step=1.0, normalise=False)
    networks: Networks = {}
    half = make_batch(2, 0)
    doubled = torch.cat([half.images, half.images])
    views = dict.fromkeys(("strong", "stronger"), doubled)
    batch = Batch(doubled, torch.cat([half.labels, half.labels]), 2, ("scan",) * 4, 0, views=views)

    class Says(nn.Module):
        def __init__(self, labels: Tensor, sure: float) -> None:
            super().__init__()
            self.sure = nn.Parameter(torch.tensor(sure))
            self.labels = labels

        def forward(self, x: Tensor) -> Tensor:
            """Logits that are right or wrong, surer with a larger parameter."""
            return self.sure * torch.movedim(nn.functional.one_hot(self.labels, 3), -1, 1).float()

    wrong = (half.labels + 1) % 3
    networks["student"] = Says(half.labels, 1.0)
    for labels, sign in ((half.labels, 1), (wrong, -1)):
        for k, name in enumerate(TEACHERS):
            networks[name] = Says(labels, 1.0 + k)
        losses = method.loss(networks, batch, method.step_plan(0))
        assert float(losses["gain/agreement"]) * sign > 0
        less = networks[TEACHERS[0]].sure
        (gradient,) = torch.autograd.grad(losses["total"] - losses["total"].detach(), [less], retain_graph=True)
        alone = supervised_loss(networks[TEACHERS[0]](half.images), half.labels, method.targets)
        (known,) = torch.autograd.grad(alone, [less])
        assert float(gradient - known) * sign < 0, "a step against the gradient makes it surer, or less sure"


@pytest.mark.parametrize("attributor", ["agreement", "disagreement"])
def test_an_ablation_tries_one_area_alone(attributor: str) -> None:
    losses = dualfete(attributor=attributor)
    found = losses.loss(perturbed_networks(losses), make_batch(2, 2), losses.step_plan(0))
    assert [key for key in found if key.startswith("gain/")] == [f"gain/{attributor}"]


def test_without_feedback_no_step_is_tried() -> None:
    method = dualfete(feedback=0.0)
    found = method.loss(perturbed_networks(method), make_batch(2, 2), method.step_plan(0))
    assert not any(key.startswith("gain/") for key in found)


def test_cutmix_teaches_the_same_labels_of_the_same_voxels() -> None:
    """A network that looks at each voxel by itself does not notice boxes of other patches."""
    method = dualfete(cutmix=1.0)
    teacher = nn.Conv3d(1, 3, 1)
    images, labels = torch.randn(4, 1, 8, 8, 8), torch.randint(0, 3, (4, 8, 8, 8))
    reliable = (torch.rand(4, 8, 8, 8) > 0.3).float()
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _m, x: seen.append(x[0].clone()))
    mixed = method.crossed(teacher, images, labels, reliable)
    assert not torch.equal(seen[0], images)
    torch.testing.assert_close(mixed, supervised_loss(teacher(images), labels, method.targets, reliable))


def test_what_feedback_needs_is_in_each_part_or_refused() -> None:
    with pytest.raises(RecipeError, match="dualfete needs 1 labelled"):
        dualfete({"batch": 4, "accumulate": 2}, labelled=1)
    with pytest.raises(RecipeError, match="learns from unlabelled scans, and there are none"):
        build_method(make_tiny_recipe("dualfete", {"batch": 4}), unlabelled=0)
