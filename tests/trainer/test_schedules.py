"""Learning rates, ramp-ups and the moving average's decay, against figures worked out elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.factories import build_method, make_tiny_recipe
from trainer.methods.mn import MN
from trainer.recipe import Schedule
from trainer.schedules import cosine_decay, ema_decay, polynomial_decay, ramp_up, rate_factor, warm_up_cosine

PAPER = {"batch": 5, "updates": 32000, "optimiser": {"rate": 1e-4}}


@pytest.fixture(scope="module")
def paper() -> MN:
    """M&N at the paper's settings: 4000 epochs of 8 updates, 500 of them on labels only."""
    method = build_method(make_tiny_recipe("mn", PAPER, iterations=8, stage1=0.125))
    assert isinstance(method, MN)
    return method


def step_of(epoch: int, *, network: str = "teacher") -> int:
    """The loop's first step of a network's ``epoch``; in stage 2 the 2D network's epoch comes first of two."""
    return 8 * (epoch if epoch < 500 else 500 + 2 * (epoch - 500) + (network == "student"))


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 1e-5), (25, 5.05e-4), (50, 1e-3), (499, 1.2e-8), (500, 1e-3), (2250, 5e-4), (3999, 2e-10)],
)
def test_the_2d_networks_rate_is_the_papers(paper: MN, epoch: int, rate: float) -> None:
    assert paper.step_plan(step_of(epoch)).rates["teacher"] == pytest.approx(rate, rel=0.02)


def test_the_3d_networks_rate_has_the_same_shape_a_tenth_as_high(paper: MN) -> None:
    for epoch in (0, 25, 499, 500, 2250, 3999):
        teacher = paper.step_plan(step_of(epoch)).rates["teacher"]
        student = paper.step_plan(step_of(epoch, network="student")).rates["student"]
        assert student == pytest.approx(teacher / 10, rel=1e-9)


def test_every_epochs_rate_is_the_one_of_torchs_schedulers(paper: MN) -> None:
    def rates(make: object, epochs: int) -> list[float]:
        optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler = make(optimiser)  # type: ignore[operator]
        out = []
        for _ in range(epochs):
            out.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
        return out

    def first_stage(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.SequentialLR:
        warm = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=0.01, total_iters=50)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=450)
        return torch.optim.lr_scheduler.SequentialLR(optimiser, [warm, fall], milestones=[50])

    expected = rates(first_stage, 500)
    expected += rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=3500), 3500)
    ours = [paper.step_plan(step_of(epoch)).rates["teacher"] for epoch in range(4000)]
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_rate_stays_the_same_within_an_epoch(paper: MN) -> None:
    for first in (0, 8 * 30, 8 * 499, 8 * 2000, 8 * 7499 - 8):
        assert len({tuple(paper.step_plan(first + k).rates.items()) for k in range(8)}) == 1


@pytest.mark.parametrize(("iteration", "weight"), [(0, 0.00067), (1500, 0.00601), (3000, 0.02865), (4500, 0.07316)])
def test_the_consistency_weight_of_la_rises_as_published(iteration: int, weight: float) -> None:
    assert 0.1 * ramp_up(iteration // 150, 40) == pytest.approx(weight, abs=5e-6)


def test_the_ramp_starts_at_e_to_minus_5_and_ends_at_1() -> None:
    assert ramp_up(0, 40) == pytest.approx(math.exp(-5))
    assert ramp_up(40, 40) == ramp_up(41, 40) == 1.0
    assert ramp_up(0, 0) == 1.0, "no ramp: the full weight from the start"


@given(st.floats(0, 500), st.floats(0, 500), st.floats(1, 400))
def test_the_ramp_never_falls(a: float, b: float, length: float) -> None:
    assert ramp_up(min(a, b), length) <= ramp_up(max(a, b), length) <= 1.0


@pytest.mark.parametrize(("update", "decay"), [(0, 0.0), (1, 0.5), (9, 0.9), (99, 0.99), (10_000, 0.99)])
def test_the_moving_average_starts_as_a_copy_and_slows_to_its_limit(update: int, decay: float) -> None:
    assert ema_decay(update, 0.99) == pytest.approx(decay)


def test_poly_decays_with_power_nine_tenths() -> None:
    assert polynomial_decay(0, 100) == 1.0
    assert polynomial_decay(50, 100) == pytest.approx(0.5**0.9)
    assert polynomial_decay(100, 100) == polynomial_decay(120, 100) == 0.0


@given(st.integers(1, 300), st.integers(1, 300))
def test_cosine_falls_from_1_to_0(step: int, total: int) -> None:
    assert cosine_decay(0, total) == 1.0
    assert cosine_decay(step, total) <= cosine_decay(step - 1, total)
    assert cosine_decay(total, total) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "poly", "step", "constant"])
def test_a_recipes_schedule_warms_up_from_one_hundredth_to_all_of_the_rate(kind: str) -> None:
    schedule = Schedule.model_validate({"kind": kind, "warm_up": 0.1, "step_every": 400})
    assert rate_factor(schedule, 0, 1000) == pytest.approx(0.01)
    assert rate_factor(schedule, 50, 1000) == pytest.approx(0.505)
    assert rate_factor(schedule, 100, 1000) == pytest.approx(1.0)
    late = {"cosine": cosine_decay(899, 900), "poly": polynomial_decay(899, 900), "step": 0.01, "constant": 1.0}[kind]
    assert rate_factor(schedule, 999, 1000) == pytest.approx(late)


def test_a_warm_up_of_nothing_starts_at_the_full_rate() -> None:
    assert warm_up_cosine(0, 10, 0) == 1.0
    assert rate_factor(Schedule(), 0, 100) == 1.0
