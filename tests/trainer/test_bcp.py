"""BCP: what is pasted where, what each voxel weighs, and the two stages (Bai et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainer.factories import RecordingNetwork, build_method, clone, make_batch, make_tiny_recipe, weights_equal
from trainer.errors import RecipeError
from trainer.methods.bcp import BCP, largest_component
from trainer.patches import Batch


def bcp(changes: dict[str, Any] | None = None, *, unlabelled: int = 12, **switches: Any) -> BCP:
    method = build_method(make_tiny_recipe("bcp", {"batch": 4, **(changes or {})}, **switches), unlabelled=unlabelled)
    assert isinstance(method, BCP)
    return method


def test_the_mask_is_a_box_of_two_thirds_that_moves_with_the_step_alone() -> None:
    method = bcp({"patch": [8, 12, 16]})
    masks = []
    for step in (0, 0, 1):
        images = torch.zeros(4, 1, 8, 12, 16)
        masks.append(method.paste_mask(Batch(images, images[:, 0].long(), 2, ("",) * 4, step)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    inside = np.argwhere(masks[0][0, 0].numpy() == 0)
    assert (np.ptp(inside, axis=0) + 1).tolist() == [5, 8, 10]  # int(2/3 of the side)
    assert len(inside) == 5 * 8 * 10, "a full box"


def test_stage_two_pastes_in_both_directions() -> None:
    method = bcp(pretrain=0.0)
    torch.manual_seed(0)
    networks = method.build()
    networks["student"] = watched = RecordingNetwork(networks["student"])
    batch = make_batch(2, 2)
    step_plan = method.step_plan(0)
    assert (step_plan.stage, step_plan.composition.labelled, step_plan.composition.unlabelled) == ("train", 2, 2)
    method.loss(networks, batch, step_plan)
    m = method.paste_mask(batch)
    x = batch.images
    torch.testing.assert_close(watched.seen[0], x[0:1] * m + x[2:3] * (1 - m))  # labelled around unlabelled
    torch.testing.assert_close(watched.seen[1], x[3:4] * m + x[1:2] * (1 - m))  # unlabelled around labelled


def test_stage_one_pastes_labelled_into_labelled_and_the_teacher_is_the_student() -> None:
    method = bcp({"updates": 10}, pretrain=0.5)
    assert [method.step_plan(k).stage for k in range(10)] == ["pretrain"] * 5 + ["train"] * 5
    torch.manual_seed(0)
    networks = method.build()
    networks["student"] = watched = RecordingNetwork(networks["student"])
    batch = make_batch(4, 0)
    losses = method.loss(networks, batch, method.step_plan(0))
    m = method.paste_mask(batch)
    torch.testing.assert_close(watched.seen[0], batch.images[:2] * m + batch.images[2:] * (1 - m))
    assert float(losses["total"].detach()) > 0
    networks["student"] = watched.network
    with torch.no_grad():
        for p in networks["student"].parameters():
            p.add_(1.0)
    method.after_update(networks, method.step_plan(0))
    assert weights_equal(networks["teacher"].state_dict(), networks["student"].state_dict())
    old = clone(networks["teacher"].state_dict())
    with torch.no_grad():
        for p in networks["student"].parameters():
            p.add_(1.0)
    method.after_update(networks, method.step_plan(7))
    for name, value in networks["teacher"].state_dict().items():
        torch.testing.assert_close(value, old[name] + 0.01)


def test_the_loss_of_perfect_logits_is_zero_and_of_voxels_outside_the_mask_is_ignored() -> None:
    method = bcp()
    labels = torch.randint(0, 3, (1, 4, 4, 4))
    target = method.targets.encode(labels)
    where = torch.zeros(1, 1, 4, 4, 4)
    where[..., :2] = 1
    perfect = 60.0 * target
    assert float(method._pasted(perfect, target, where)) == pytest.approx(0.0, abs=1e-4)
    spoilt = perfect.clone()
    spoilt[..., 2:] = -spoilt[..., 2:]
    assert float(method._pasted(spoilt, target, where)) == pytest.approx(0.0, abs=1e-4)
    assert float(method._pasted(spoilt, target, torch.ones_like(where))) > 0.5


def test_pseudo_labels_keep_the_largest_component_of_each_segment() -> None:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[0, 0, 0] = True
    mask[3:6, 3:6, 3:6] = True
    assert largest_component(mask).sum() == 27
    assert not largest_component(np.zeros((3, 3, 3), dtype=bool)).any()

    class PatchSampler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Class 1 where the mask is, class 2 on one voxel, else background."""
            out = torch.zeros(1, 3, 8, 8, 8)
            out[:, 0] = 1
            out[0, 1][torch.from_numpy(mask)] = 5
            out[0, 2, 7, 7, 7] = 9
            return out

    found = bcp().pseudo_labels(PatchSampler(), torch.zeros(1, 1, 8, 8, 8))[0]
    assert int((found == 1).sum()) == 27
    assert int(found[7, 7, 7]) == 2
    assert int(found[0, 0, 0]) == 0
    whole = bcp(largest_component=False).pseudo_labels(PatchSampler(), torch.zeros(1, 1, 8, 8, 8))[0]
    assert int((whole == 1).sum()) == 28


@pytest.mark.parametrize("direction", [0, 1], ids=["inward", "outward"])
def test_each_direction_teaches_the_student_alone(direction: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = bcp(pretrain=0.0)
    torch.manual_seed(0)
    networks = method.build()
    called: list[int] = []
    forward = networks["student"].forward

    def one_direction(x: Tensor) -> Tensor:
        called.append(len(called))
        out: Tensor = forward(x)
        return out if called[-1] == direction else out.detach()

    monkeypatch.setattr(networks["student"], "forward", one_direction)
    method.loss(networks, make_batch(2, 2), method.step_plan(0))["total"].backward()
    assert called == [0, 1]
    assert max(float(p.grad.abs().max()) for p in networks["student"].parameters() if p.grad is not None) > 1e-6
    assert all(p.grad is None for p in networks["teacher"].parameters())


def test_the_weight_of_pseudo_labels() -> None:
    torch.manual_seed(0)
    networks = bcp(pretrain=0.0).build()
    batch = make_batch(2, 2)
    values = [bcp(pretrain=0.0, weight=w) for w in (0.0, 0.5, 1.0)]
    totals = [float(m.loss(networks, batch, m.step_plan(0))["total"].detach()) for m in values]
    assert totals[1] - totals[0] == pytest.approx(totals[2] - totals[1], rel=1e-4)
    assert totals[0] < totals[1]


def test_batches_that_do_not_hold_fours_and_splits_without_unlabelled_scans_are_refused() -> None:
    with pytest.raises(RecipeError, match="multiple of 4"):
        bcp({"batch": 6})
    with pytest.raises(RecipeError, match="multiple of 8"):
        bcp({"batch": 4, "accumulate": 2})
    with pytest.raises(RecipeError, match="unlabelled"):
        bcp(unlabelled=0)
