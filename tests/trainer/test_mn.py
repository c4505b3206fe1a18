"""M&N: who learns when, from what, and which of the 2D network's parameters (as the paper and its code have it)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.trainer.factories import (
    BATCH_NORM_NETWORK,
    build_method,
    make_batch,
    make_tiny_plan,
    make_tiny_recipe,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.checkpoints import load_state
from trainer.errors import RecipeError
from trainer.methods.mn import MN


def mn(changes: dict[str, Any] | None = None, *, axis: int = 2, unlabelled: int = 12, **switches: Any) -> MN:
    method = build_method(make_tiny_recipe("mn", changes, **switches), axis=axis, unlabelled=unlabelled)
    assert isinstance(method, MN)
    return method


def paper(**switches: Any) -> MN:
    return mn({"batch": 5, "updates": 32000}, iterations=8, stage1=0.125, **switches)


# --- the schedule -------------------------------------------------------------------------------------------------


def test_the_stages_have_the_papers_lengths() -> None:
    method = paper()
    assert method.epochs == (500, 3500)
    assert method.steps == 8 * (500 + 2 * 3500)
    assert method.step_plan(3999).stage == "labelled"
    assert set(method.step_plan(3999).rates) == {"student", "teacher"}
    stages = [method.step_plan(4000 + 8 * k).stage for k in range(4)]
    assert stages == ["cotrain-teacher", "cotrain-student"] * 2


def test_the_student_gets_the_recipes_updates_and_the_teacher_as_many() -> None:
    method = mn({"updates": 40}, iterations=4, stage1=0.3)
    step_plans = [method.step_plan(step) for step in range(method.steps)]
    of_student = [step_plan.student_update for step_plan in step_plans if "student" in step_plan.rates]
    assert of_student == list(range(40))
    assert sum("teacher" in step_plan.rates for step_plan in step_plans) == 40


def test_with_a_fixed_2d_network_only_the_student_learns_after_stage_1() -> None:
    method = mn({"updates": 40}, iterations=4, stage1=0.3, cotrain="fixed2d")
    assert method.steps == 40
    step_plans = [method.step_plan(step) for step in range(40)]
    assert [step_plan.student_update for step_plan in step_plans] == list(range(40))
    assert all(
        set(step_plan.rates) == ({"student", "teacher"} if k < 12 else {"student"})
        for k, step_plan in enumerate(step_plans)
    )


@pytest.mark.parametrize(("share", "stages"), [(0.0, {"cotrain-teacher", "cotrain-student"}), (1.0, {"labelled"})])
def test_either_stage_may_be_left_out(share: float, stages: set[str]) -> None:
    method = mn(stage1=share)
    assert {method.step_plan(step).stage for step in range(method.steps)} == stages


def test_updates_that_are_not_whole_epochs_are_refused_before_anything_is_read() -> None:
    with pytest.raises(RecipeError, match=r"9 updates are not a whole number of epochs of 2 updates"):
        mn({"updates": 9})


def test_learning_rate_guided_sampling_reaches_each_patch_at_the_papers_epoch() -> None:
    method = paper()
    counts = [method.unlabelled_in_batch(epoch, 0) for epoch in range(3500)]
    assert [500 + counts.index(k) for k in (1, 2, 3, 4)] == [1534, 2026, 2475, 2967]
    assert 5 not in counts, "never the whole batch while training"


def test_the_released_codes_linear_rule_reaches_them_earlier() -> None:
    method = paper(lrg="linear")
    counts = [method.unlabelled_in_batch(epoch, 0) for epoch in range(3500)]
    assert [500 + counts.index(k) for k in (1, 2, 3, 4)] == [1200, 1900, 2600, 3300]


@given(st.integers(1, 12), st.integers(2, 60), st.sampled_from(["lr", "linear"]))
@settings(max_examples=40, deadline=None)
def test_the_mixture_follows_the_rate_of_the_turn(batch: int, epochs: int, rule: str) -> None:
    method = mn({"batch": batch, "updates": 2 * epochs, "optimiser": {"rate": 0.5}}, stage1=0.0, lrg=rule)
    seen = []
    for epoch in range(epochs):
        step_plan = method.step_plan(2 * (2 * epoch + 1))  # the student's part
        assert step_plan.stage == "cotrain-student"
        assert step_plan.composition == method.step_plan(4 * epoch).composition, (
            "both networks of an epoch see the same mixture"
        )
        assert step_plan.composition.labelled + step_plan.composition.unlabelled == batch
        if rule == "lr":
            exact = (0.5 - step_plan.rates["student"]) / 0.5 * batch  # Eq. 10 with eta_end = 0
            assert step_plan.composition.unlabelled == math.floor(exact + 1e-6)
        seen.append(step_plan.composition.unlabelled)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert method.unlabelled_in_batch(epochs, 0) == batch, "eta = eta_end would be (0, B)"


def test_fixed_sampling_keeps_its_mixture() -> None:
    method = mn({"batch": 5}, lrg="fixed", fixed_unlabelled=3)
    mixtures = {
        method.step_plan(s).composition.unlabelled
        for s in range(method.steps)
        if method.step_plan(s).stage != "labelled"
    }
    assert mixtures == {3}


def test_uniform_sampling_draws_scans_as_often_as_there_are() -> None:
    method = mn({"batch": 8, "updates": 2000}, stage1=0.0, lrg="uniform", unlabelled=12)
    drawn = [method.step_plan(step).composition.unlabelled for step in range(method.steps)]
    assert sum(drawn) / (8 * len(drawn)) == pytest.approx(12 / 16, abs=0.02)
    assert drawn == [method.step_plan(step).composition.unlabelled for step in range(method.steps)], (
        "a function of the step"
    )


def test_without_unlabelled_scans_every_batch_is_labelled() -> None:
    method = mn({"batch": 4}, unlabelled=0, lrg="fixed")
    assert {method.step_plan(step).composition.unlabelled for step in range(method.steps)} == {0}


def test_pseudo_masks_of_whole_scans_are_renewed_at_the_papers_epochs_before_the_students_part() -> None:
    method = paper()
    steps = [step for step in range(0, method.steps, 8) if method.refreshes_foreground(step)]
    assert [method.step_plan(step).student_update // 8 for step in steps] == [500, 1000, 1500, 2000, 3000]
    assert {method.step_plan(step).stage for step in steps} == {"cotrain-student"}


# --- what each learns from ----------------------------------------------------------------------------------------


def turn_of(method: MN, stage: str, unlabelled: int) -> Any:
    return next(
        t
        for t in map(method.step_plan, range(method.steps))
        if t.stage == stage and t.composition.unlabelled == unlabelled
    )


@pytest.mark.parametrize(("learner", "other"), [("student", "teacher"), ("teacher", "student")])
def test_the_network_that_teaches_gets_no_gradient_and_is_in_evaluation_mode(learner: str, other: str) -> None:
    method = mn(lrg="fixed", fixed_unlabelled=1)
    networks = method.build()
    step_plan = turn_of(method, f"cotrain-{learner}", 1)
    method.prepare(networks, step_plan)
    method.loss(networks, make_batch(1, 1), step_plan)["total"].backward()
    assert all(p.grad is None for p in networks[other].parameters())
    assert not any(m.training for m in networks[other].modules())
    assert networks[learner].training
    assert any(p.grad is not None for p in networks[learner].parameters())


def test_a_network_is_bit_identical_after_the_others_epoch(tmp_path: Path) -> None:
    changes = {"student": BATCH_NORM_NETWORK, "checkpoint_every": 1, "updates": 8}
    states: list[tuple[str, dict[str, dict[str, torch.Tensor]]]] = []
    checkpoint = tmp_path / "run" / "checkpoint.pt"

    def look(step: int, steps: int, values: dict[str, Any]) -> None:
        # The checkpoint of the step before lies there while this step is reported.
        if checkpoint.exists():
            states.append((values["stage"], load_state(checkpoint, torch.device("cpu")).networks))

    recipe = make_tiny_recipe("mn", changes, lrg="fixed", fixed_unlabelled=1)
    train_on_cpu(write_phantoms(tmp_path / "data"), recipe, tmp_path / "run", report=look)
    seen = set()
    for (stage, before), (_, after) in itertools.pairwise(states):
        for name in ("student", "teacher"):
            learns = stage == "labelled" or stage.endswith(name)
            assert weights_equal(before[name], after[name]) != learns, (stage, name)
        seen.add(stage)
    assert seen == {"labelled", "cotrain-teacher", "cotrain-student"}


def test_targets_are_labels_first_then_the_soft_masks_of_the_other_network() -> None:
    method = mn({"batch": 3}, lrg="fixed", fixed_unlabelled=2)
    networks = method.build()
    batch = make_batch(1, 2)
    for network in networks.values():
        network.eval()
    for flat, name in ((True, "teacher"), (False, "student")):
        target = method._target(batch, networks[name], flat=flat)
        assert torch.equal(target[0].argmax(dim=0), batch.labels[0])
        assert set(target[0].unique().tolist()) == {0.0, 1.0}
        with torch.no_grad():
            if flat:
                rows = torch.stack([networks[name](batch.images[1:, ..., k]) for k in range(8)], dim=-1)
            else:
                rows = networks[name](batch.images[1:])
        torch.testing.assert_close(target[1:], torch.softmax(rows, dim=1), atol=1e-6, rtol=1e-5)
        assert not target.requires_grad


def test_predicting_in_chunks_changes_nothing() -> None:
    whole, chunked = mn(lrg="fixed"), mn(lrg="fixed", chunk=3)
    teacher = whole.build()["teacher"].eval()
    images = make_batch(0, 2).images
    with torch.no_grad():
        torch.testing.assert_close(whole.as_volume_network(teacher)(images), chunked.as_volume_network(teacher)(images))


@pytest.mark.parametrize("learner", ["student", "teacher"])
def test_the_values_of_an_unlabelled_patchs_labels_do_not_reach_the_loss(learner: str) -> None:
    method = mn(lrg="fixed", fixed_unlabelled=1)
    networks = method.build()
    for network in networks.values():
        network.eval()
    step_plan = turn_of(method, f"cotrain-{learner}", 1)
    batch = make_batch(1, 1)
    before = method.loss(networks, batch, step_plan)["total"]
    labels = batch.labels.clone()
    labels[1:] = 2
    after = method.loss(networks, dataclasses.replace(batch, labels=labels), step_plan)["total"]
    assert torch.equal(before, after)
    labels[:1] = 2 - labels[:1]
    assert not torch.equal(before, method.loss(networks, dataclasses.replace(batch, labels=labels), step_plan)["total"])


class _Recorder(nn.Module):
    """A 2D network that says what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.shown = torch.zeros(0)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        self.shown = slices.detach()
        return self.weight[None, :, None, None] * torch.ones_like(slices)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_subset_of_slices_is_the_same_for_image_and_target(axis: int) -> None:
    method = mn(slices=3, axis=axis)
    batch = make_batch(2, 0)
    targets: list[torch.Tensor] = []
    method.mixed_loss = lambda logits, target, *_: targets.append(target) or logits.sum()  # type: ignore
    teacher = _Recorder()
    step_plan = method.step_plan(0)
    method.loss({"student": method.build_student(), "teacher": teacher}, batch, step_plan)
    images, target = teacher.shown, targets[-1]
    assert images.shape[0] == target.shape[0] == 2 * 3
    depth_of = []
    for row in range(6):
        volume, wanted = batch.images[row // 3], batch.labels[row // 3]
        (k,) = (k for k in range(8) if torch.equal(volume.select(1 + axis, k), images[row]))
        assert torch.equal(wanted.select(axis, k), target[row].argmax(dim=0))
        depth_of.append(k)
    assert depth_of[:3] == depth_of[3:] == sorted(depth_of[:3]), "the same slices of each volume"
    method.loss({"student": method.build_student(), "teacher": teacher}, dataclasses.replace(batch, step=1), step_plan)
    assert not torch.equal(images, teacher.shown), "other slices at another step"


def test_test_and_development_scans_are_in_no_pool_and_never_opened(tmp_path: Path) -> None:
    dataset = write_phantoms(tmp_path / "data", cases=8, labelled=2, test=2, development=2)
    plan = make_tiny_plan(dataset, make_tiny_recipe("mn"))
    kept_out = {*plan.split.test, *plan.split.development}
    assert len(kept_out) == 4
    pools = plan.training_pools()
    assert not kept_out & {case for pool in pools.values() for case in pool}
    assert len(pools["labelled"]) == len(pools["unlabelled"]) == 2
    for case in kept_out:
        dataset.case(case).image.unlink()
        label = dataset.case(case).label
        assert label is not None
        label.unlink()
    manifest = train_on_cpu(dataset, make_tiny_recipe("mn"), tmp_path / "run")
    assert (manifest.provenance.labelled, manifest.provenance.unlabelled) == (2, 2)
    assert not manifest.provenance.transductive
