"""AD-MT: whose turn it is, the teachers' common labels, CutMix, and the loss written out (Zhao et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.factories import (
    BATCH_NORM_NETWORK,
    build_method,
    clone,
    make_batch,
    make_tiny_recipe,
    perturbed_networks,
    weights_equal,
)
from trainer.cutmix import centred_box, inner_box, paste_boxes
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods.admt import ADMT
from trainer.methods.method import Networks


def admt(changes: dict[str, Any] | None = None, **switches: Any) -> ADMT:
    method = build_method(make_tiny_recipe("admt", {"batch": 5, "updates": 100, **(changes or {})}, **switches))
    assert isinstance(method, ADMT)
    return method


def written_out(
    networks: Networks, weak: Tensor, disturbed: Tensor, threshold: float, changes: bool
) -> tuple[Tensor, int, int]:
    """The pseudo-label loss voxel by voxel, how many voxels count, and how many labels the student decided."""
    with torch.no_grad():
        p, q, s = (torch.softmax(networks[n](weak), 1) for n in ("teacher", "second_teacher", "student"))
        y = torch.log_softmax(networks["student"](disturbed), 1)
    total, count, decided = 0.0, 0, 0
    for n, i, j, k in np.ndindex(len(weak), *weak.shape[2:]):
        a, b, own = p[n, :, i, j, k].double(), q[n, :, i, j, k].double(), s[n, :, i, j, k].double()
        h = [float(-(x * x.log2()).sum()) for x in (a, b)]
        e = np.exp(-np.array(h))
        mean = (e[0] * a + e[1] * b) / e.sum()
        label, sure = int(mean.argmax()), float(mean.max())
        if changes and int(a.argmax()) != int(b.argmax()) and int(own.argmax()) != label and float(own.max()) > sure:
            label, sure = int(own.argmax()), float(own.max())
            decided += 1
        if sure >= threshold:
            total -= float(y[n, label, i, j, k])
            count += 1
    return torch.tensor(total / max(count, 1)), count, decided


@pytest.mark.parametrize("conflicts", ["certain", "teachers"])
def test_the_loss_of_the_first_teachers_turns_written_out(conflicts: str) -> None:
    method = admt(weight=3.0, ramp=0.0, threshold=0.45, labelled=2, conflicts=conflicts)
    networks = perturbed_networks(method)
    step = next(k for k in range(100) if method.active(k) == "teacher")
    batch = make_batch(2, 3)
    losses = method.loss(networks, batch, method.step_plan(step))
    strong = batch.views["strong"][2:]
    pseudo, count, decided = written_out(networks, batch.images[2:], strong, 0.45, conflicts == "certain")
    assert 0 < count < 3 * 8**3, "the threshold decides something"
    assert (decided > 0) is (conflicts == "certain")
    logits = networks["student"](batch.images[:2])
    expected = supervised_loss(logits, batch.labels[:2], method.targets) + 3.0 * pseudo
    torch.testing.assert_close(losses["total"], expected, rtol=1e-4, atol=1e-5)


def test_in_the_second_teachers_turns_boxes_of_patches_change_places_with_all_that_is_known_of_them() -> None:
    method = admt(weight=1.0, ramp=0.0, threshold=0.0, labelled=2)
    images = make_batch(0, 4).images
    values = tuple(torch.randn(4, 8, 8, 8) for _ in range(2))
    torch.manual_seed(3)
    mixed, moved = method.cut_and_mixed(images, values)
    assert not torch.equal(mixed, images)
    source = torch.cdist(mixed.flatten(2).movedim(2, 0).squeeze(-1)[..., None], images.flatten(2).movedim(2, 0)) == 0
    for row in range(4):
        for voxel in range(8**3):
            froms = source[voxel, row].nonzero()[:, 0].tolist()
            assert froms, "every voxel is one of the same place"
            for value, now in zip(values, moved, strict=True):
                assert any(bool(now[row].flatten()[voxel] == value[k].flatten()[voxel]) for k in froms)
    torch.manual_seed(3)
    step = next(k for k in range(100) if method.active(k) == "second_teacher")
    losses = method.loss(perturbed_networks(method), replace(make_batch(2, 3), views={}), method.step_plan(step))
    assert float(losses["pseudo"]) > 0, "and no strong view is asked for"


def test_without_cutmix_the_second_teachers_turns_show_the_patch_as_it_is() -> None:
    method = admt(weight=1.0, ramp=0.0, threshold=0.45, labelled=2, cutmix=0.0)
    networks = perturbed_networks(method)
    step = next(k for k in range(100) if method.active(k) == "second_teacher")
    batch = make_batch(2, 3)
    pseudo, *_ = written_out(networks, batch.images[2:], batch.images[2:], 0.45, True)
    found = method.loss(networks, batch, method.step_plan(step))["pseudo"]
    torch.testing.assert_close(found, pseudo, rtol=1e-4, atol=1e-5)


def test_the_teachers_take_turns_of_random_lengths_that_the_seed_decides() -> None:
    method = admt({"updates": 4000}, period=5)
    turns = [method.active(k) for k in range(4000)]
    changes = np.flatnonzero(np.array(turns[1:]) != np.array(turns[:-1])) + 1
    lengths = np.diff([0, *changes])
    assert set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert lengths.mean() == pytest.approx(3.0, abs=0.15)
    assert turns == [admt({"updates": 4000}, period=5).active(k) for k in range(4000)]
    assert turns != [admt({"updates": 4000, "seed": 1}, period=5).active(k) for k in range(4000)]
    assert turns[0] == "teacher"


def test_only_the_teacher_whose_turn_it_is_follows_first_as_a_copy() -> None:
    method = admt({"updates": 100, "student": BATCH_NORM_NETWORK}, copied=0.1, decay=0.9)
    networks = perturbed_networks(method)
    for step, decay in ((9, 0.0), (10, 0.0), (12, 0.5), (16, 0.75), (90, 0.9)):
        step_plan = method.step_plan(step)
        other = {"teacher": "second_teacher", "second_teacher": "teacher"}[step_plan.stage]
        before = {name: clone(network.state_dict()) for name, network in networks.items()}
        method.after_update(networks, step_plan)
        assert weights_equal(networks[other].state_dict(), before[other])
        for key, value in networks[step_plan.stage].state_dict().items():
            if value.is_floating_point():
                wanted = decay * before[step_plan.stage][key] + (1 - decay) * before["student"][key]
                torch.testing.assert_close(value, wanted, msg=f"{key} at step {step}")
        with torch.no_grad():
            for p in networks["student"].parameters():
                p.add_(1.0)


def test_where_no_voxel_is_confident_the_term_is_zero() -> None:
    method = admt(weight=1.0, ramp=0.0, threshold=1.0, labelled=2)
    losses = method.loss(perturbed_networks(method), make_batch(2, 3), method.step_plan(0))
    assert float(losses["pseudo"]) == 0.0
    losses["total"].backward()


def test_a_part_without_unlabelled_patches_is_refused() -> None:
    with pytest.raises(RecipeError, match="admt needs 1 unlabelled"):
        admt({"batch": 4, "accumulate": 2}, labelled=3)


# --- boxes --------------------------------------------------------------------------------------------------------


def test_boxes_lie_in_the_patch_and_have_the_sides_that_the_share_leaves() -> None:
    random = np.random.default_rng(0)
    sides, share = (8, 16, 24), 0.75  # sqrt(1 - 0.75) = 1/2
    inner = [inner_box(sides, random, share) for _ in range(300)]
    assert {tuple(cut.stop - cut.start for cut in box) for box in inner} == {(4, 8, 12)}
    assert {box[0].start for box in inner} == {0, 1, 2, 3, 4}
    centred = [centred_box(sides, random, share) for _ in range(300)]
    for box in centred:
        assert all(0 <= cut.start < cut.stop <= side for cut, side in zip(box, sides, strict=True))
    whole = [box for box in centred if box[0].start > 0 and box[0].stop < 8]
    assert {box[0].stop - box[0].start for box in whole} == {4}
    assert any(box[0].stop == 8 and box[0].stop - box[0].start < 4 for box in centred), "cut at the border"


def test_a_box_that_is_pasted_into_mirrored_rows_and_back_changes_nothing() -> None:
    values = torch.randn(3, 2, 4, 4, 4)
    box = (slice(1, 3), slice(0, 2), slice(2, 4))
    there = paste_boxes(values, [box] * 3, [2, 1, 0])
    assert torch.equal(there[0, :, 1:3, 0:2, 2:4], values[2, :, 1:3, 0:2, 2:4])
    assert torch.equal(there[0, :, 0], values[0, :, 0])
    assert torch.equal(paste_boxes(there, [box] * 3, [2, 1, 0]), values)
