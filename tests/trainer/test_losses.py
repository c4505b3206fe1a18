"""The losses against their formulas written out, and that each of their terms teaches the student."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainer.factories import build_method, make_batch, make_tiny_recipe
from trainer.losses import dice_pooled, supervised_loss
from trainer.methods.mn import MN
from trainer.patches import BatchComposition
from trainer.targets import ExclusiveClasses, OverlappingRegions


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return ExclusiveClasses(classes - 1).encode(labels)


def kl_mean(logits: Tensor, target: Tensor) -> Tensor:
    return ExclusiveClasses(target.shape[1] - 1).divergence(logits, target).mean()


def logits_and_labels(count: int, classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn((count, classes, 5, 4, 3), generator=random)
    return logits, torch.randint(0, classes, (count, 5, 4, 3), generator=random)


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_kl_with_one_hot_targets_is_the_cross_entropy_divided_by_the_classes(classes: int) -> None:
    logits, labels = logits_and_labels(3, classes)
    expected = functional.cross_entropy(logits, labels) / classes
    torch.testing.assert_close(kl_mean(logits, one_hot(labels, classes)), expected)


def test_kl_of_soft_targets_is_the_sum_written_out() -> None:
    logits = torch.tensor([[[0.3], [-0.2]]])
    target = torch.tensor([[[0.8], [0.2]]])
    p = torch.softmax(logits, dim=1)
    by_hand = sum(float(t * math.log(t / q)) for t, q in zip(target.flatten(), p.flatten(), strict=True)) / 2
    assert float(kl_mean(logits, target)) == pytest.approx(by_hand, abs=1e-6)


def test_kl_is_zero_where_the_prediction_is_the_target() -> None:
    logits, _ = logits_and_labels(2, 3)
    assert float(kl_mean(logits, torch.softmax(logits, dim=1))) == pytest.approx(0, abs=1e-6)


def test_one_hot_puts_classes_where_channels_are() -> None:
    labels = torch.tensor([[[0, 2], [1, 0]]])
    assert one_hot(labels, 3).shape == (1, 3, 2, 2)
    assert torch.equal(one_hot(labels, 3).argmax(dim=1), labels)


def test_dice_of_two_classes_by_hand() -> None:
    # Class 0: p = (.9, .4), y = (1, 0); class 1: p = (.1, .6), y = (0, 1).
    p = torch.tensor([[[0.9, 0.4], [0.1, 0.6]]])
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    first = 1 - 2 * 0.9 / (0.81 + 0.16 + 1)
    second = 1 - 2 * 0.6 / (0.01 + 0.36 + 1)
    assert float(dice_pooled(p, y)) == pytest.approx((first + second) / 2, abs=1e-6)


def test_dice_pools_over_the_batch() -> None:
    p = torch.tensor([[[0.9], [0.1]], [[0.2], [0.8]]])
    y = torch.tensor([[[1.0], [0.0]], [[1.0], [0.0]]])
    first = 1 - 2 * (0.9 + 0.2) / (0.81 + 0.04 + 2)  # one fraction for both patches
    assert float(dice_pooled(p, y)) == pytest.approx((first + 1.0) / 2, abs=1e-6)


def test_dice_of_a_class_that_neither_has_costs_nothing() -> None:
    y = one_hot(torch.tensor([[[0, 1]]]), 3)
    assert float(dice_pooled(y, y)) == pytest.approx(0, abs=1e-6)


def test_dice_of_a_class_that_is_only_predicted_costs_all_of_it() -> None:
    y = one_hot(torch.tensor([[0, 0]]), 2)
    p = one_hot(torch.tensor([[0, 1]]), 2)
    assert float(dice_pooled(p, y)) == pytest.approx((1 - 2 / 3 + 1) / 2, abs=1e-6)


def test_the_supervised_loss_of_regions_is_half_binary_cross_entropy_half_dice() -> None:
    logits, labels = logits_and_labels(2, 3)
    regions = OverlappingRegions(3)
    y = torch.stack([(labels >> r) & 1 for r in range(3)], dim=1).float()
    crossed = functional.binary_cross_entropy_with_logits(logits, y)
    expected = 0.5 * crossed + 0.5 * dice_pooled(torch.sigmoid(logits), y)
    torch.testing.assert_close(supervised_loss(logits, labels, regions), expected)


def test_a_part_of_a_batch_without_labels_costs_nothing() -> None:
    logits, labels = logits_and_labels(2, 3)
    assert float(supervised_loss(logits[:0], labels[:0], ExclusiveClasses(2))) == 0.0


def test_the_supervised_loss_is_half_cross_entropy_half_dice() -> None:
    logits, labels = logits_and_labels(2, 3)
    soft = torch.softmax(logits, dim=1)
    expected = 0.5 * functional.cross_entropy(logits, labels) + 0.5 * dice_pooled(soft, one_hot(labels, 3))
    torch.testing.assert_close(supervised_loss(logits, labels, ExclusiveClasses(2)), expected)


def mn(**switches: object) -> MN:
    method = build_method(make_tiny_recipe("mn", {"batch": 5}, **switches))
    assert isinstance(method, MN)
    return method


@pytest.mark.parametrize("labelled", [1, 2, 4])
@pytest.mark.parametrize(("loss", "channels"), [("pooled", 1), ("weighted", 3)])
def test_on_a_mixed_batch_the_kl_part_is_weighted_by_the_shares_of_the_patches(
    labelled: int, loss: str, channels: int
) -> None:
    logits, labels = logits_and_labels(5, 3)
    target = torch.cat([one_hot(labels[:labelled], 3), torch.softmax(3 * logits.flip(0)[labelled:], dim=1)])
    parts = (labelled * kl_mean(logits[:labelled], target[:labelled])) / 5
    parts += ((5 - labelled) * kl_mean(logits[labelled:], target[labelled:])) / 5
    torch.testing.assert_close(
        mn(weight_dice=0.0, loss=loss).mixed_loss(logits, target, labelled, BatchComposition(labelled, 5 - labelled)),
        channels * parts,
    )


@pytest.mark.parametrize("labelled", [0, 2, 5])
def test_the_weighted_loss_is_equation_5_to_the_letter(labelled: int) -> None:
    logits, labels = logits_and_labels(5, 4)
    target = torch.cat([one_hot(labels[:labelled], 4), torch.softmax(logits.flip(0)[labelled:], dim=1)])
    soft = torch.softmax(logits, dim=1)
    voxels, expected = logits[0, 0].numel(), 0.0
    for first, last in ((0, labelled), (labelled, 5)):
        if last == first:
            continue
        y, p, count = target[first:last], soft[first:last], last - first
        pairs = list(zip(y.flatten().tolist(), p.flatten().tolist(), strict=True))
        apart = sum(float(a * math.log(a / b)) for a, b in pairs if a > 0)
        expected += count / 5 * (apart / (count * voxels) + float(dice_pooled(p, y)))
    value = mn(loss="weighted").mixed_loss(logits, target, labelled, BatchComposition(labelled, 5 - labelled))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_one_dice_over_the_batch_is_not_the_weighted_mean_of_two() -> None:
    logits, labels = logits_and_labels(5, 3)
    logits[2:, 0] += 3  # the unlabelled patches hold mostly background
    target = torch.cat([one_hot(labels[:2], 3), torch.softmax(logits.flip(0)[2:], dim=1)])
    pooled = mn(weight_kl=0.0, loss="pooled").mixed_loss(logits, target, 2, BatchComposition(2, 3))
    weighted = mn(weight_kl=0.0, loss="weighted").mixed_loss(logits, target, 2, BatchComposition(2, 3))
    soft = torch.softmax(logits, dim=1)
    torch.testing.assert_close(pooled, dice_pooled(soft, target))
    torch.testing.assert_close(
        weighted, 0.4 * dice_pooled(soft[:2], target[:2]) + 0.6 * dice_pooled(soft[2:], target[2:])
    )
    assert abs(float(pooled - weighted)) > 1e-3


def test_the_weights_of_the_two_terms_are_the_recipes() -> None:
    logits, labels = logits_and_labels(2, 3)
    target = one_hot(labels, 3)
    kl = kl_mean(logits, target)
    dice = dice_pooled(torch.softmax(logits, dim=1), target)
    torch.testing.assert_close(
        mn(weight_kl=2.0, weight_dice=3.0).mixed_loss(logits, target, 2, BatchComposition(2, 0)), 2 * kl + 3 * dice
    )


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["kl", "dice"])
@pytest.mark.parametrize(("labelled", "unlabelled"), [(2, 0), (0, 2)], ids=["labels", "pseudo-masks"])
@pytest.mark.parametrize("learner", ["student", "teacher"])
def test_each_term_of_m_and_n_teaches_the_network_whose_turn_it_is(
    weights: tuple[float, float], labelled: int, unlabelled: int, learner: str
) -> None:
    fixed = {"lrg": "fixed", "fixed_unlabelled": unlabelled}
    method = build_method(make_tiny_recipe("mn", weight_kl=weights[0], weight_dice=weights[1], **fixed))
    torch.manual_seed(0)
    networks = method.build()
    step_plan = next(t for t in map(method.step_plan, range(method.steps)) if t.stage == f"cotrain-{learner}")
    assert (step_plan.composition.labelled, step_plan.composition.unlabelled) == (labelled, unlabelled)
    method.prepare(networks, step_plan)
    method.loss(networks, make_batch(labelled, unlabelled), step_plan)["total"].backward()
    gradients = [p.grad for p in networks[learner].parameters() if p.requires_grad]
    # The biases before a normalisation have a gradient of zero; every weight has one that is not.
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert max(float(g.abs().max()) for g in gradients if g is not None) > 1e-6


@pytest.mark.parametrize("term", ["supervised", "consistency"])
def test_each_term_of_mean_teacher_teaches_the_student(term: str) -> None:
    method = build_method(make_tiny_recipe("mean_teacher", weight=1.0, ramp=0.0))
    torch.manual_seed(0)
    networks = method.build()
    step_plan = method.step_plan(0)
    method.prepare(networks, step_plan)
    batch = make_batch(1, 1)
    if term == "supervised":
        batch.images[1:] = 0  # nothing to be inconsistent about
        networks["teacher"].load_state_dict(networks["student"].state_dict())
    else:
        torch.manual_seed(1)
        networks["teacher"] = method.build()["teacher"]  # another network, so that the two disagree
    losses = method.loss(networks, batch, step_plan)
    value = (
        losses["total"]
        if term == "supervised"
        else losses["total"]
        - supervised_loss(networks["student"](batch.images)[:1], batch.labels[:1], ExclusiveClasses(2))
    )
    value.backward()
    weights = [p for name, p in networks["student"].named_parameters() if name.endswith("weight")]
    assert all(p.grad is not None for p in weights)
    assert max(float(p.grad.abs().max()) for p in weights if p.grad is not None) > 1e-6
