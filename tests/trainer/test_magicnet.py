"""MagicNet: cubes across and within images, the place of a cube, and blended pseudo-labels (Chen et al. 2023)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.factories import build_method, make_batch, make_tiny_recipe
from tests.trainer.test_uamt import ConstantNetwork
from trainer.errors import RecipeError
from trainer.methods.magicnet import CubeLocationHead, MagicNet


def magicnet(changes: dict[str, Any] | None = None, **switches: Any) -> MagicNet:
    document = {"batch": 4, "patch": [16, 16, 16], **(changes or {})}
    method = build_method(make_tiny_recipe("magicnet", document, **{"cubes": 2, "hidden": 16, **switches}))
    assert isinstance(method, MagicNet)
    return method


def networks_of(method: MagicNet) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return method.build()


def test_the_location_head_has_the_papers_size() -> None:
    with torch.device("meta"):
        head = CubeLocationHead(256 * 8, 4096, 27, 14)
    linear = sum(p.numel() for m in head.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    assert linear == 8_392_704 + 110_619  # 8.50 M; with the batch norm 8.51 M
    assert sum(p.numel() for p in head.parameters()) == linear + 2 * 4096


def test_the_terms_add_up_and_each_branch_can_be_left_out() -> None:
    method = magicnet(weight=2.0, ramp=0.0)
    losses = method.loss(networks_of(method), make_batch(2, 2, side=16), method.step_plan(0))
    expected = losses["supervised"] + 0.1 * losses["location"] + 2.0 * losses["pseudo"]
    torch.testing.assert_close(losses["total"].detach(), expected)
    for switch, gone in (("cross", "pseudo"), ("within", "location")):
        method = magicnet(**{switch: False})
        losses = method.loss(networks_of(method), make_batch(2, 2, side=16), method.step_plan(0))
        assert gone not in losses


def test_telling_places_teaches_the_encoder_and_the_head() -> None:
    method = magicnet(location=1.0)
    networks = networks_of(method)
    method.prepare(networks, method.step_plan(0))
    _, location = method.read_cubes(networks, make_batch(2, 2, side=16).images)
    location.backward()
    deepest = networks["student"].get_submodule(method._deepest())
    assert max(float(p.grad.abs().max()) for p in deepest.parameters() if p.grad is not None) > 1e-7
    assert max(float(p.grad.abs().max()) for p in networks["location"].parameters() if p.grad is not None) > 1e-6


@pytest.mark.parametrize("branch", ["cross", "within", "plain"])
def test_labels_teach_through_each_branch(branch: str) -> None:
    method = magicnet(weight=0.0, location=0.0, cross=branch == "cross", within=branch == "within")
    networks = networks_of(method)
    batch = make_batch(4, 0, side=16)
    torch.manual_seed(3)
    total = method.loss(networks, batch, method.step_plan(0))["total"]
    plain = magicnet(weight=0.0, location=0.0, cross=False, within=False)
    torch.manual_seed(3)
    alone = plain.loss(networks, batch, plain.step_plan(0))["total"]
    of_branch = total if branch == "plain" else total - alone
    gradients = torch.autograd.grad(of_branch, list(networks["student"].parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradients if g is not None) > 1e-6
    assert all(p.grad is None for p in networks["teacher"].parameters())


def test_the_pseudo_label_of_a_crossed_patch_alone_teaches_the_student() -> None:
    networks = networks_of(magicnet())
    torch.manual_seed(1)
    networks["teacher"] = magicnet().build()["teacher"]
    batch = make_batch(2, 2, side=16)
    totals = []
    for weight in (1.0, 0.0):
        torch.manual_seed(3)  # the same noise and the same orders of cubes
        chosen = magicnet(weight=weight, ramp=0.0, location=0.0, within=False)
        totals.append(chosen.loss(networks, batch, chosen.step_plan(0))["total"])
    pseudo = totals[0] - totals[1]
    assert float(pseudo.detach()) > 0
    gradients = torch.autograd.grad(pseudo, list(networks["student"].parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradients if g is not None) > 1e-6


def test_cubes_read_one_by_one_come_back_to_their_places() -> None:
    method = magicnet()
    networks = networks_of(method)

    class Echo(nn.Module):
        """Logits that are the image itself, in three channels."""

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Identity()
            self.deep = networks["student"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """(N, 1, ...) -> (N, 3, ...)."""
            self.deep(x)
            return x.expand(-1, 3, *x.shape[2:])

    echo = Echo()
    method._deepest = lambda: "deep." + MagicNet._deepest(method)  # type: ignore[method-assign]
    images = make_batch(0, 3, side=16).images
    logits, _ = method.read_cubes({**networks, "student": echo}, images)
    torch.testing.assert_close(logits, images.expand(-1, 3, -1, -1, -1))


def test_the_place_of_a_cube_can_be_learned() -> None:
    torch.manual_seed(0)
    head = CubeLocationHead(8, 16, 8, 3)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    features = torch.eye(8)
    for _ in range(100):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(head(features), torch.arange(8))
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1


def test_class_counts_are_renewed_now_and_then_and_are_shares_of_the_largest() -> None:
    head = CubeLocationHead(8, 16, 8, 3)
    head.add_counts(torch.tensor([80, 20, 0]))
    head.add_counts(torch.tensor([20, 5, 1]))
    assert float(head.counted.sum()) == 0, "nothing before the renewal"
    head.apply_counts()
    torch.testing.assert_close(head.class_weights(1.0), torch.tensor([1.0, 0.25, 0.01]))
    torch.testing.assert_close(head.class_weights(2.0), torch.tensor([1.0, 0.5, 0.1]))
    head.apply_counts()
    assert float(head.counted[0]) == 100, "a renewal without new counts keeps the old ones"
    assert set(head.state_dict()) >= {"seen", "counted"}, "they are part of a checkpoint"


def test_class_counts_are_renewed_as_often_as_asked_for() -> None:
    method = magicnet({"updates": 8}, count_every=3)
    networks = networks_of(method)
    location = networks["location"]
    assert isinstance(location, CubeLocationHead)
    renewed = []
    for update in range(6):
        location.add_counts(torch.full((3,), 1 + update))
        before = float(location.counted.sum())
        method.after_update(networks, method.step_plan(update))
        renewed.append(float(location.counted.sum()) > before)
    assert renewed == [False, False, True, False, False, True]


@pytest.mark.parametrize("blend", [True, False])
def test_frequent_classes_follow_the_cubes_and_rare_ones_the_teacher(blend: bool) -> None:
    method = magicnet(noise=0.0, blend=blend, blend_from=0.0)
    networks = networks_of(method)
    location = networks["location"]
    assert isinstance(location, CubeLocationHead)
    location.counted.copy_(torch.tensor([100.0, 50.0, 0.0]))
    step_plan = method.step_plan(5)
    images = torch.zeros(1, 1, 2, 2, 2)
    for said, expected in ((0, 1), (2, 2)):  # the teacher's class, the blended one; the cubes say 1
        logits = [0.0, 0.0, 0.0]
        logits[said] = 5.0
        networks["teacher"] = ConstantNetwork(*logits)
        within = ConstantNetwork(0.0, 9.0, 0.0)(images)
        found = method.pseudo_labels(networks, images, within, step_plan)
        assert set(found.unique().tolist()) == {expected if blend else said}


@pytest.mark.parametrize(
    ("changes", "switches", "words"),
    [
        ({"patch": [12, 16, 16]}, {}, "multiples of"),
        ({"patch": [4, 4, 4]}, {}, "not all equal to them"),
        ({"student": {"kind": "swinunetr"}, "patch": [64, 64, 64]}, {}, "takes the patch's size only"),
    ],
)
def test_patches_and_students_that_cannot_be_cut_are_refused(
    changes: dict[str, Any], switches: dict[str, Any], words: str
) -> None:
    document = {"student": {"kind": "unet", "channels": [4, 8, 8], "residual_units": 0}, **changes}
    if changes.get("patch") == [4, 4, 4]:
        document["student"] = {"kind": "unet", "channels": [4, 8], "residual_units": 0}
    with pytest.raises(RecipeError, match=words):
        magicnet(document, **switches)
