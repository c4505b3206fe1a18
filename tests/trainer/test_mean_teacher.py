"""Mean Teacher: the consistency term, the moving average, and what each switch changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.factories import BATCH_NORM_NETWORK, build_method, clone, make_batch, make_tiny_recipe, weights_equal
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods.mean_teacher import MeanTeacher
from trainer.moving_average import update_moving_average


def mean_teacher(changes: dict[str, Any] | None = None, *, unlabelled: int = 12, **switches: Any) -> MeanTeacher:
    method = build_method(
        make_tiny_recipe("mean_teacher", {"batch": 4, **(changes or {})}, **switches), unlabelled=unlabelled
    )
    assert isinstance(method, MeanTeacher)
    return method


def networks_of(method: MeanTeacher, seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return method.build()


def disturb(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_equal_networks_without_noise_agree() -> None:
    method = mean_teacher(noise=0.0)
    networks = networks_of(method)
    losses = method.loss(networks, make_batch(2, 2), method.step_plan(0))
    assert float(losses["consistency"]) == 0.0
    assert torch.equal(losses["total"], losses["supervised"])


def test_noise_on_the_teachers_input_makes_them_disagree() -> None:
    method = mean_teacher(noise=0.5)
    assert float(method.loss(networks_of(method), make_batch(2, 2), method.step_plan(0))["consistency"]) > 1e-7


def test_the_noise_is_cut_at_twice_its_spread() -> None:
    noise = mean_teacher(noise=0.1).noise(torch.zeros(100_000))
    assert float(noise.abs().max()) == pytest.approx(0.2)
    assert float(noise.std()) == pytest.approx(0.1 * 0.959, rel=0.02)  # of a normal cut at 2 sigma
    assert float((noise.abs() < 0.1999).float().mean()) > 0.9


@pytest.mark.parametrize(("on", "first"), [("unlabelled", 2), ("all", 0)])
def test_the_loss_is_supervised_plus_weighted_consistency(on: str, first: int) -> None:
    method = mean_teacher(noise=0.0, weight=3.0, ramp=0.0, consistency_on=on)
    networks = networks_of(method)
    disturb(networks["teacher"])
    batch = make_batch(2, 2)
    losses = method.loss(networks, batch, method.step_plan(5))
    logits = networks["student"](batch.images)
    supervised = supervised_loss(logits[:2], batch.labels[:2], method.targets)
    p, q = torch.softmax(logits, dim=1), torch.softmax(networks["teacher"](batch.images), dim=1)
    consistency = ((p - q) ** 2)[first:].mean()
    torch.testing.assert_close(losses["supervised"], supervised.detach())
    torch.testing.assert_close(losses["consistency"], consistency.detach())
    torch.testing.assert_close(losses["total"], supervised + 3.0 * consistency)


def test_the_weight_rises_over_its_share_of_the_updates() -> None:
    method = mean_teacher({"updates": 100}, weight=2.0, ramp=0.4)
    weights = [method.weight(k) for k in range(101)]
    assert weights[0] == pytest.approx(2 * 0.0067379, rel=1e-4)
    assert weights[20] == pytest.approx(2 * 2.718281828 ** (-5 * 0.25), rel=1e-6)
    assert weights == sorted(weights)
    assert weights[40] == weights[100] == 2.0


def test_the_moving_average_is_the_papers_at_updates_0_1_and_99() -> None:
    method = mean_teacher(decay=0.99)
    for update, a in ((0, 0.0), (1, 0.5), (99, 0.99), (500, 0.99)):
        networks = networks_of(method)
        disturb(networks["teacher"])
        old, new = clone(networks["teacher"].state_dict()), clone(networks["student"].state_dict())
        method.after_update(networks, method.step_plan(update))
        for name, value in networks["teacher"].state_dict().items():
            torch.testing.assert_close(value, a * old[name] + (1 - a) * new[name])
        assert weights_equal(new, networks["student"].state_dict()), "the student is not moved"


def test_only_the_student_gets_gradients() -> None:
    method = mean_teacher(consistency_on="all")
    networks = networks_of(method)
    method.loss(networks, make_batch(2, 2), method.step_plan(0))["total"].backward()
    assert all(p.grad is None and not p.requires_grad for p in networks["teacher"].parameters())
    assert all(p.grad is not None for p in networks["student"].parameters())


def test_both_networks_train_with_dropout_as_in_the_papers() -> None:
    method = mean_teacher({"student": BATCH_NORM_NETWORK})
    networks = networks_of(method)
    method.prepare(networks, method.step_plan(0))
    assert all(m.training for network in networks.values() for m in network.modules())


@pytest.mark.parametrize("averaged", [False, True])
def test_buffers_are_averaged_only_when_asked(averaged: bool) -> None:
    method = mean_teacher({"student": BATCH_NORM_NETWORK}, average_buffers=averaged)
    networks = networks_of(method)
    for _ in range(3):
        networks["student"](make_batch(2, 2).images + 5)
    teacher, student = (dict(networks[name].named_buffers()) for name in ("teacher", "student"))
    means = [name for name in teacher if name.endswith("running_mean")]
    counts = [name for name in teacher if name.endswith("num_batches_tracked")]
    assert means
    assert counts
    old = clone(teacher)
    method.after_update(networks, method.step_plan(1))
    for name in means:
        expected = 0.5 * old[name] + 0.5 * student[name] if averaged else old[name]
        torch.testing.assert_close(teacher[name], expected)
        assert not torch.equal(old[name], student[name])
    for name in counts:
        assert int(teacher[name]) == (3 if averaged else 0)


def test_averaging_refuses_networks_that_differ() -> None:
    with pytest.raises(ValueError, match="cannot be averaged"):
        update_moving_average(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), 0.5, buffers=False)


@pytest.mark.parametrize("kept", ["student", "teacher"])
def test_the_recipe_says_which_of_the_two_is_kept(kept: str) -> None:
    method = mean_teacher(export=kept)
    networks = networks_of(method)
    assert method.exported(networks) is networks[kept]


@pytest.mark.parametrize(
    ("batch", "labelled", "unlabelled_scans", "mixture"),
    [(4, None, 12, (2, 2)), (5, None, 12, (3, 2)), (4, 1, 12, (1, 3)), (4, None, 0, (4, 0)), (1, 9, 0, (1, 0))],
)
def test_the_mixture_is_half_and_half_or_the_recipes(
    batch: int, labelled: int | None, unlabelled_scans: int, mixture: tuple[int, int]
) -> None:
    method = mean_teacher({"batch": batch}, unlabelled=unlabelled_scans, labelled=labelled)
    step_plan = method.step_plan(3)
    assert (step_plan.composition.labelled, step_plan.composition.unlabelled) == mixture


def test_without_unlabelled_patches_the_loss_is_the_supervised_one() -> None:
    method = mean_teacher({"batch": 2}, unlabelled=0)
    losses = method.loss(networks_of(method), make_batch(2, 0), method.step_plan(0))
    assert set(losses) == {"total", "supervised"}


@pytest.mark.parametrize("labelled", [1, 2, 3])
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("on", ["unlabelled", "all"])
def test_parts_of_a_batch_weigh_each_term_as_the_whole_batch_does(labelled: int, parts: int, on: str) -> None:
    method = mean_teacher(noise=0.0, weight=3.0, ramp=0.0, labelled=labelled, consistency_on=on)
    networks = networks_of(method)
    disturb(networks["teacher"])
    batch, step_plan = make_batch(labelled, 4 - labelled), method.step_plan(5)
    whole = method.loss(networks, batch, step_plan)
    # Cross-entropy and consistency are means over patches, so they add up; the Dice part is pooled over each part.
    terms = [(len(part) / len(batch), method.loss(networks, part, step_plan), part) for part in batch.parts(parts)]
    assert all(bool(torch.isfinite(losses["total"])) for _, losses, _ in terms), "a part may hold no labelled patch"
    consistency = sum(share * losses.get("consistency", torch.tensor(0.0)) for share, losses, _ in terms)
    torch.testing.assert_close(consistency, whole["consistency"])
    share_of_labels = sum(
        share
        * float(
            losses["supervised"]
            / supervised_loss(
                networks["student"](part.images)[: part.labelled], part.labels[: part.labelled], method.targets
            ).detach()
        )
        for share, losses, part in terms
        if part.labelled
    )
    assert share_of_labels == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("batch", "labelled"), [(1, None), (2, 2), (4, 9)])
def test_a_batch_without_a_place_for_unlabelled_patches_is_refused(batch: int, labelled: int | None) -> None:
    with pytest.raises(RecipeError, match="leave no place for unlabelled ones"):
        mean_teacher({"batch": batch}, labelled=labelled).step_plan(0)


@pytest.mark.parametrize("switches", [{"wieght": 1}, {"decay": 1.0}, {"weight": -1}, {"export": "both"}])
def test_switches_that_do_not_hold_are_refused(switches: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"methods\.mean_teacher: {next(iter(switches))}"):
        mean_teacher(**switches)
