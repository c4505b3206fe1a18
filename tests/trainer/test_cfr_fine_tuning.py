"""CFR, first part: the foundation model is fine-tuned on canvases of labelled slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.trainer.cfr_methods import build_networks, make_cfr
from tests.trainer.factories import (
    SAM_CONFIG,
    make_batch,
)
from trainer.patches import Batch
from trainer.sam import SamSettings, build_sam
from trainer.stages import StageSequence


def test_the_foundation_model_learns_first_and_from_labels_alone() -> None:
    method = make_cfr(sam_updates=3, volumes=2)
    stages = StageSequence(method)
    assert stages.steps == 3 + method.recipe.updates
    for step in range(3):
        step_plan = stages.step_plan(step)
        assert (set(step_plan.rates), step_plan.stage) == ({"sam"}, "fine-tune")
        assert (step_plan.composition.labelled, step_plan.composition.unlabelled) == (2, 0)
    rates = [method.step_plan(step).rates["sam"] for step in range(3)]
    assert rates[0] == 1e-3
    assert rates[2] == pytest.approx(1e-3 * (1 / 3) ** 0.9)
    for step in range(3, stages.steps):
        step_plan = stages.step_plan(step)
        assert "sam" not in step_plan.rates
        assert step_plan.label == f"mean_teacher-{step_plan.stage}"
        assert step_plan.student_update == step - 3


def test_the_foundation_model_follows_a_schedule_of_its_own() -> None:
    steady = make_cfr(sam_updates=4, sam_schedule={"kind": "constant"})
    falling = make_cfr(sam_updates=4, sam_schedule={"kind": "poly"})
    assert len({steady.step_plan(step).rates["sam"] for step in range(4)}) == 1
    rates = [falling.step_plan(step).rates["sam"] for step in range(4)]
    assert (
        rates[0] == steady.step_plan(0).rates["sam"] and rates == sorted(rates, reverse=True) and len(set(rates)) == 4
    )


def test_the_loss_on_canvases_written_out() -> None:
    method = make_cfr(bend=0.0)
    networks, batch = build_networks(method), make_batch(2, 0)
    images, labels, there = method.canvases(batch)
    logits = networks["sam"](images)
    ignored = labels.where(there, torch.tensor(255))
    crossed = functional.cross_entropy(logits, ignored, ignore_index=255)
    p = torch.softmax(logits, dim=1)
    y = functional.one_hot(labels, 3).movedim(-1, 1) * there[:, None]
    dice = 1 - (2 * (p * y).sum((0, 2, 3)) / ((p * p).sum((0, 2, 3)) + (y * y).sum((0, 2, 3)))).mean()
    torch.testing.assert_close(method.canvas_loss(networks["sam"], batch), 0.5 * (crossed + dice))


def test_padding_costs_no_cross_entropy_but_a_segment_predicted_there_costs_dice() -> None:
    method = make_cfr(bend=0.0)
    batch = make_batch(2, 0)
    _, labels, there = method.canvases(batch)
    right = 10.0 * functional.one_hot(labels, 3).movedim(-1, 1).float()
    wrong = right.clone()
    wrong[:, 1] = wrong[:, 1].where(there, torch.tensor(30.0))

    class Says(nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits

    assert 0 < float(there.float().mean()) < 1
    crossed = functional.cross_entropy(right.movedim(1, -1)[there], labels[there])
    assert float(functional.cross_entropy(wrong.movedim(1, -1)[there], labels[there])) == pytest.approx(float(crossed))
    costs = [float(method.canvas_loss(Says(logits), batch)) for logits in (right, wrong)]
    p, y = torch.softmax(wrong, dim=1), functional.one_hot(labels, 3).movedim(-1, 1) * there[:, None]
    dice = 1 - (2 * (p * y).sum((0, 2, 3)) / ((p * p).sum((0, 2, 3)) + (y * y).sum((0, 2, 3)))).mean()
    assert costs[1] == pytest.approx(0.5 * float(crossed + dice), abs=1e-5)
    assert costs[1] != pytest.approx(costs[0], abs=1e-3)


def test_images_and_labels_share_a_canvas_whatever_is_done_to_their_slices() -> None:
    for switches in ({}, {"shuffle_slices": True}, {"turn_slices": True}, {"turn_canvas": True}):
        method = make_cfr(bend=0.0, **switches)
        batch = make_batch(2, 0)
        batch = Batch(batch.labels[:, None].float() + 1, batch.labels, 2, batch.cases, 0)
        torch.manual_seed(1)
        images, labels, there = method.canvases(batch)
        assert torch.equal(images[:, 0], (labels + 1).float() * there), switches
        plain = make_cfr(bend=0.0).canvases(batch)[1]
        assert torch.equal(labels, plain) is (not switches)
        assert torch.equal(labels.flatten().sort().values, plain.flatten().sort().values)


@pytest.mark.parametrize(
    ("switches", "shape"),
    [
        ({}, (2, 1, 64, 64)),
        ({"grid": 2}, (4, 1, 64, 64)),
        ({"input": "upsample", "slices": 3}, (6, 1, 64, 64)),
        ({"input": "small", "slices": 3, "sam": {**SAM_CONFIG, "side": 16}}, (6, 1, 16, 16)),
    ],
)
def test_the_input_strategies(switches: dict[str, Any], shape: tuple[int, ...]) -> None:
    method = make_cfr(**switches)
    networks, batch = build_networks(method), make_batch(2, 0)
    assert method.canvases(batch)[0].shape == shape
    total = method.loss(networks, batch, method.step_plan(0))["total"]
    total.backward()
    assert max(float(p.grad.abs().max()) for p in networks["sam"].parameters() if p.grad is not None) > 0
    whole = method.as_volume_network(networks["sam"])(batch.images)
    assert whole.shape == (2, 3, 8, 8, 8)


def test_the_fine_tuning_reaches_the_adapters_and_leaves_the_students_alone() -> None:
    method = make_cfr()
    networks = build_networks(method)
    method.prepare(networks, method.step_plan(0))
    with torch.no_grad():  # at the start an adapter's first half has no gradient, since its second half is zero
        for name, p in networks["sam"].named_parameters():
            if "_up.weight" in name:
                p.fill_(0.01)
    method.loss(networks, make_batch(2, 0), method.step_plan(0))["total"].backward()
    adapters = [p.grad for n, p in networks["sam"].named_parameters() if "_down.weight" in n]
    assert len(adapters) == 4
    assert all(g is not None and float(g.abs().max()) > 0 for g in adapters)
    assert all(p.grad is None for p in networks["student"].parameters())


def test_the_foundation_model_learns_by_its_own_optimiser_and_its_weights_are_told(tmp_path: Path) -> None:
    build_sam(SamSettings.model_validate({**SAM_CONFIG, "finetune": "whole"}), 1, 3).network.save_pretrained(
        tmp_path / "tiny-sam"
    )
    (tmp_path / "tiny-sam" / "README.md").write_text("---\nlicense: mit\n---\n")
    sgd = {"kind": "sgd", "rate": 0.5}
    method = make_cfr(sam={"weights": {"folder": str(tmp_path / "tiny-sam")}}, sam_optimiser=sgd)
    stages = StageSequence(method)
    stages.build()
    assert stages.optimiser("sam").kind == "sgd"
    assert stages.step_plan(0).rates == {"sam": 0.5}
    assert stages.optimiser("student") == method.recipe.optimiser
    assert [(w.name, w.licence) for w in stages.pretrained()] == [("tiny-sam", "mit")]


def test_slices_are_bent_on_the_canvas_and_labels_are_not() -> None:
    batch = make_batch(2, 0)
    torch.manual_seed(0)
    bent, labels, _ = make_cfr(bend=1.0).canvases(batch)
    plain, same, there = make_cfr(bend=0.0).canvases(batch)
    assert torch.equal(labels, same)
    assert float((bent != plain)[there[:, None]].float().mean()) > 0.9
