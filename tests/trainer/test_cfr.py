"""CFR: what the foundation model learns from, what it then tells the host, and what is left of it at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from semiseg.dataset import Dataset
from tests.trainer.tiny import (
    PARTNER,
    SAM,
    SEGFORMER,
    SHORT,
    THREE_LEVELS,
    batch_of,
    clone,
    phantoms,
    plan_of,
    recipe_for,
    same_weights,
    trained,
    weights_of,
)
from trainer.cases import encode_prediction, prepare_cases
from trainer.engine import TorchEngine
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods import METHODS, make_method
from trainer.methods.cfr import CFR
from trainer.methods.method import Task
from trainer.patches import Batch
from trainer.plan import make_manifest
from trainer.sam import Sam, build_sam
from trainer.stages import Stages
from trainer.targets import ExclusiveClasses, Targets
from trainer.validation import segmenter_for

TWO = ExclusiveClasses(2)
HOST_SWITCHES: dict[str, dict[str, Any]] = {
    "dual": {"partner": PARTNER},
    "mn": {"teacher": {"finetune": "whole", "config": SEGFORMER}, "iterations": 2, "stage1": 0.25},
    "comparative": SHORT,
    "contrastive": SHORT,
    "magicnet": {"cubes": 2, "hidden": 8, "ramp": 0.0},
    "mean_teacher": {"noise": 0.0, "ramp": 0.0},
}


def cfr(changes: dict[str, Any] | None = None, targets: Targets = TWO, unlabelled: int = 12, **switches: Any) -> CFR:
    recipe = recipe_for("cfr", changes, **switches)
    recipe = recipe.model_copy(update={"methods": {**HOST_SWITCHES, **recipe.methods}})
    method = make_method(recipe, Task(1, targets, 2, 4, unlabelled))
    assert isinstance(method, CFR)
    return method


def networks_of(method: CFR) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return Stages(method).build()


# --- fine-tuning --------------------------------------------------------------------------------------------------


def test_the_foundation_model_learns_first_and_from_labels_alone() -> None:
    method = cfr(sam_updates=3, volumes=2)
    stages = Stages(method)
    assert stages.steps == 3 + method.recipe.updates
    for step in range(3):
        turn = stages.turn(step)
        assert (set(turn.rates), turn.stage) == ({"sam"}, "fine-tune")
        assert (turn.mixture.labelled, turn.mixture.unlabelled) == (2, 0)
    rates = [method.turn(step).rates["sam"] for step in range(3)]
    assert rates[0] == 1e-3
    assert rates[2] == pytest.approx(1e-3 * (1 / 3) ** 0.9)
    for step in range(3, stages.steps):
        turn = stages.turn(step)
        assert "sam" not in turn.rates
        assert turn.label == f"mean_teacher-{turn.stage}"
        assert turn.student_update == step - 3


def test_the_foundation_model_follows_a_schedule_of_its_own() -> None:
    steady = cfr(sam_updates=4, sam_schedule={"kind": "constant"})
    falling = cfr(sam_updates=4, sam_schedule={"kind": "poly"})
    assert len({steady.turn(step).rates["sam"] for step in range(4)}) == 1
    rates = [falling.turn(step).rates["sam"] for step in range(4)]
    assert rates[0] == steady.turn(0).rates["sam"] and rates == sorted(rates, reverse=True) and len(set(rates)) == 4


def test_the_loss_on_canvases_written_out() -> None:
    method = cfr(bend=0.0)
    networks, batch = networks_of(method), batch_of(2, 0)
    images, labels, there = method.canvases(batch)
    logits = networks["sam"](images)
    ignored = labels.where(there, torch.tensor(255))
    crossed = functional.cross_entropy(logits, ignored, ignore_index=255)
    p = torch.softmax(logits, dim=1)
    y = functional.one_hot(labels, 3).movedim(-1, 1) * there[:, None]
    dice = 1 - (2 * (p * y).sum((0, 2, 3)) / ((p * p).sum((0, 2, 3)) + (y * y).sum((0, 2, 3)))).mean()
    torch.testing.assert_close(method.canvas_loss(networks["sam"], batch), 0.5 * (crossed + dice))


def test_padding_costs_no_cross_entropy_but_a_segment_predicted_there_costs_dice() -> None:
    method = cfr(bend=0.0)
    batch = batch_of(2, 0)
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
        method = cfr(bend=0.0, **switches)
        batch = batch_of(2, 0)
        batch = Batch(batch.labels[:, None].float() + 1, batch.labels, 2, batch.cases, 0)
        torch.manual_seed(1)
        images, labels, there = method.canvases(batch)
        assert torch.equal(images[:, 0], (labels + 1).float() * there), switches
        plain = cfr(bend=0.0).canvases(batch)[1]
        assert torch.equal(labels, plain) is (not switches)
        assert torch.equal(labels.flatten().sort().values, plain.flatten().sort().values)


@pytest.mark.parametrize(
    ("switches", "shape"),
    [
        ({}, (2, 1, 64, 64)),
        ({"grid": 2}, (4, 1, 64, 64)),
        ({"input": "upsample", "slices": 3}, (6, 1, 64, 64)),
        ({"input": "small", "slices": 3, "sam": {**SAM, "side": 16}}, (6, 1, 16, 16)),
    ],
)
def test_the_input_strategies(switches: dict[str, Any], shape: tuple[int, ...]) -> None:
    method = cfr(**switches)
    networks, batch = networks_of(method), batch_of(2, 0)
    assert method.canvases(batch)[0].shape == shape
    total = method.loss(networks, batch, method.turn(0))["total"]
    total.backward()
    assert max(float(p.grad.abs().max()) for p in networks["sam"].parameters() if p.grad is not None) > 0
    whole = method.on_volumes(networks["sam"])(batch.images)
    assert whole.shape == (2, 3, 8, 8, 8)


def test_the_fine_tuning_reaches_the_adapters_and_leaves_the_students_alone() -> None:
    method = cfr()
    networks = networks_of(method)
    method.prepare(networks, method.turn(0))
    with torch.no_grad():  # at the start an adapter's first half has no gradient, since its second half is zero
        for name, p in networks["sam"].named_parameters():
            if "_up.weight" in name:
                p.fill_(0.01)
    method.loss(networks, batch_of(2, 0), method.turn(0))["total"].backward()
    adapters = [p.grad for n, p in networks["sam"].named_parameters() if "_down.weight" in n]
    assert len(adapters) == 4
    assert all(g is not None and float(g.abs().max()) > 0 for g in adapters)
    assert all(p.grad is None for p in networks["student"].parameters())


# --- re-training --------------------------------------------------------------------------------------------------


def told(method: CFR, labels: torch.Tensor | None = None) -> Batch:
    """A batch of the host's second step: two labelled patches and two that the foundation model labelled."""
    batch = batch_of(2, 2, step=method.steps + 1)
    pseudo = torch.randint(0, 3, (2, 8, 8, 8), generator=torch.Generator().manual_seed(5)) if labels is None else labels
    return replace(batch, guides={"cfr": torch.cat([torch.zeros_like(pseudo), pseudo])})


@pytest.mark.parametrize("host", ["mean_teacher", "acmt", "uamt", "cps", "supervised"])
def test_without_weight_on_the_pseudo_labels_the_step_is_the_hosts_own(host: str) -> None:
    method = cfr(host=host, pseudo_weight=0.0)
    stages, batch = Stages(method), told(method)
    networks = stages.build()
    turn = stages.turn(batch.step)
    alone = METHODS[host](method.recipe, method.task)
    torch.manual_seed(7)
    one = stages.loss(networks, batch, turn)["total"]
    torch.manual_seed(7)
    other = alone.loss(networks, batch, turn)["total"]
    torch.testing.assert_close(one, other)


def test_without_consistency_perfect_pseudo_labels_are_supervision() -> None:
    method = cfr({"updates": 4})
    method.host.switches = method.host.switches.model_copy(update={"weight": 0.0})
    stages, batch = Stages(method), told(method)
    networks = stages.build()
    logits, pseudo = networks["student"](batch.images), batch.guides["cfr"][2:]
    expected = supervised_loss(logits[:2], batch.labels[:2], TWO) + supervised_loss(logits[2:], pseudo, TWO)
    torch.testing.assert_close(stages.loss(networks, batch, stages.turn(batch.step))["total"], expected)


@pytest.mark.parametrize("host", [name for name in METHODS if name not in ("distil", "cfr")])
def test_the_pseudo_labels_train_the_student_of_every_host(host: str) -> None:
    method = cfr({"updates": 8, **({"student": THREE_LEVELS} if host == "urpc" else {})}, host=host)
    stages = Stages(method)
    torch.manual_seed(0)
    networks = stages.build()
    # The host's last step in which the student learns from labelled and unlabelled patches.
    step = max(
        s
        for s in range(method.steps, stages.steps)
        if "student" in stages.turn(s).rates and stages.turn(s).mixture.unlabelled and stages.turn(s).mixture.labelled
    )
    turn = stages.turn(step)
    stages.prepare(networks, turn, step)
    labelled = turn.mixture.labelled
    found = []
    for seed in (1, 2):
        batch = batch_of(labelled, turn.mixture.unlabelled, step=step)
        pseudo = torch.randint(0, 3, batch.labels.shape, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(3)
        total = stages.loss(networks, replace(batch, guides={"cfr": pseudo}), turn)["total"]
        weights = [p for p in networks["student"].parameters() if p.requires_grad]
        found.append(torch.autograd.grad(total, weights, allow_unused=True))
        assert all(p.grad is None for p in networks["sam"].parameters())
    apart = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert apart > 1e-6


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 2.0), ("ramp", 2 * np.exp(-5 / 4)), ("falling", 1.0)])
def test_the_weight_of_the_pseudo_labels_follows_its_schedule(schedule: str, expected: float) -> None:
    method = cfr({"updates": 100}, pseudo_weight=2.0, pseudo_schedule=schedule)
    assert method.guidance_weight(50) == pytest.approx(expected)


def test_on_the_fly_the_foundation_model_labels_the_patch_itself() -> None:
    method = cfr(pseudo_labels="on_the_fly")
    stages, batch = Stages(method), told(method)
    networks = stages.build()
    turn = stages.turn(batch.step)
    stages.prepare(networks, turn, batch.step)
    assert not networks["sam"].training
    with torch.no_grad():
        pseudo = torch.softmax(method.on_volumes(networks["sam"])(batch.images[2:]), dim=1).argmax(dim=1)
    assert pseudo.shape == (2, 8, 8, 8)
    assert pseudo.dtype == torch.long
    cached, whole = replace(batch, guides={"cfr": torch.cat([batch.labels[:2], pseudo])}), Stages(cfr())
    whole.build()
    one, other = stages.loss(networks, batch, turn)["total"], whole.loss(networks, cached, turn)["total"]
    torch.testing.assert_close(one, other)


def test_self_training_learns_from_the_foundation_models_labels_in_every_round() -> None:
    """Algorithm 1, line 18: L_pl is added at every update, beside the labels of self-training's own rounds."""
    method = cfr({"updates": 10}, host="self_training", pseudo_weight=0.5)
    stages, first = Stages(method), method.steps
    networks = stages.build()
    assert {s: stages.labelling_sources(s) for s in range(stages.steps) if stages.labelling_sources(s)} == {
        first: ("cfr",),
        first + 4: ("self_training",),
    }
    (own,) = stages.labellings(networks, first + 4)
    assert own.network is None, "the student"
    assert (stages.restarts(first), stages.restarts(first + 4)) == ((), ("student",))
    batch = told(method)
    own_labels = torch.randint(0, 3, (2, 8, 8, 8), generator=torch.Generator().manual_seed(9))
    labels = torch.cat([batch.labels[:2], own_labels])
    for step, rounds in ((first + 1, 0), (first + 5, 1)):
        at = replace(batch, labels=labels, step=step)
        assert stages.turn(step).mixture.unlabelled == 2
        logits = networks["student"](at.images)
        expected = supervised_loss(logits[:2], labels[:2], TWO) + rounds * supervised_loss(logits[2:], own_labels, TWO)
        expected = expected + 0.5 * supervised_loss(logits[2:], at.guides["cfr"][2:], TWO)
        torch.testing.assert_close(stages.loss(networks, at, stages.turn(step))["total"], expected)


def test_a_host_that_never_shows_the_student_the_patches_themselves_is_guided_in_a_pass_of_its_own() -> None:
    method = cfr({"updates": 8}, host="bcp")
    stages, batch = Stages(method), replace(told(method), step=method.steps + 7)
    networks, turn = stages.build(), stages.turn(batch.step)
    terms = stages.loss(networks, batch, turn)
    expected = supervised_loss(networks["student"](batch.images[2:]), batch.guides["cfr"][2:], TWO)
    torch.testing.assert_close(terms["cfr"], expected.detach())


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return phantoms(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("pseudo", ["cached", "on_the_fly"])
def test_the_foundation_model_is_fixed_while_the_student_learns_and_not_kept(
    dataset: Dataset, tmp_path: Path, pseudo: str
) -> None:
    recipe = recipe_for("cfr", {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 3}, pseudo_labels=pseudo)
    plan = plan_of(dataset, recipe)
    manifest = trained(dataset, recipe, tmp_path / "run", cache=tmp_path / "cache")
    after = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["networks"]["sam"]
    kept = weights_of(tmp_path / "run")
    student = plan.stages.last.build_student().state_dict()
    assert kept.keys() == student.keys()
    assert manifest.provenance.parameters == sum(v.numel() for v in student.values())

    def stop(step: int, steps: int, values: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(dataset, recipe, tmp_path / "early", cache=tmp_path / "cache", report=stop)
    early = torch.load(tmp_path / "early" / "checkpoint.pt", weights_only=True)["networks"]["sam"]
    assert same_weights(clone(early), clone(after)), "after its last step nothing of it moved"


def test_cached_labels_are_those_of_the_foundation_model(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 3}
    recipe = recipe_for("cfr", changes, sam={**SAM, "finetune": "whole"}, sam_optimiser={"rate": 0.03})

    def stop(step: int, steps: int, values: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(dataset, recipe, tmp_path / "run", report=stop)
    plan = plan_of(dataset, recipe)
    found = {p.stem: np.load(p) for p in (tmp_path / "run" / "pseudo" / "3").glob("*.npy")}
    assert found.keys() == set(plan.unlabelled)
    networks = plan.stages.build()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    for name, network in networks.items():
        network.load_state_dict(state["networks"][name])
    manifest = make_manifest(plan)
    cache = tmp_path / "run" / "cache"
    cases = prepare_cases(dataset, (), plan.unlabelled, plan.segments, plan.preprocessing, cache)
    same = {}
    (labelling,) = plan.stages.labellings(networks, 3)
    for who, labeller in (("sam", labelling.network), ("student", networks["student"])):
        assert labeller is not None
        segmenter = segmenter_for(manifest, TorchEngine(labeller))
        made = {i: segmenter.segment_prepared(np.asarray(cases[i].image)) for i in found}
        encoded = {i: encode_prediction(made[i], plan.segments) for i in found}
        same[who] = all(np.array_equal(encoded[i], found[i]) for i in found)
    assert same == {"sam": True, "student": False}


def test_the_foundation_model_learns_by_its_own_optimiser_and_its_weights_are_told(tmp_path: Path) -> None:
    build_sam(Sam.model_validate({**SAM, "finetune": "whole"}), 1, 3).network.save_pretrained(tmp_path / "tiny-sam")
    (tmp_path / "tiny-sam" / "README.md").write_text("---\nlicense: mit\n---\n")
    sgd = {"kind": "sgd", "rate": 0.5}
    method = cfr(sam={"weights": {"folder": str(tmp_path / "tiny-sam")}}, sam_optimiser=sgd)
    stages = Stages(method)
    stages.build()
    assert stages.optimiser("sam").kind == "sgd"
    assert stages.turn(0).rates == {"sam": 0.5}
    assert stages.optimiser("student") == method.recipe.optimiser
    assert [(w.name, w.licence) for w in stages.pretrained()] == [("tiny-sam", "mit")]


def test_slices_are_bent_on_the_canvas_and_labels_are_not() -> None:
    batch = batch_of(2, 0)
    torch.manual_seed(0)
    bent, labels, _ = cfr(bend=1.0).canvases(batch)
    plain, same, there = cfr(bend=0.0).canvases(batch)
    assert torch.equal(labels, same)
    assert float((bent != plain)[there[:, None]].float().mean()) > 0.9


def test_the_teacher_of_the_host_follows_its_student() -> None:
    stages = Stages(cfr())
    networks = stages.build()
    with torch.no_grad():
        for p in networks["student"].parameters():
            p.add_(1.0)
    stages.after_update(networks, stages.turn(0), 0)
    assert not same_weights(networks["student"].state_dict(), networks["teacher"].state_dict()), "not yet"
    stages.after_update(networks, stages.turn(3), 3)
    assert same_weights(networks["student"].state_dict(), networks["teacher"].state_dict()), "its first step copies"


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"methods\.cfr\.volumes: 2 patches cannot be shared evenly by 4 part"):
        cfr({"accumulate": 4})
    with pytest.raises(RecipeError, match="has none; train with `supervised`"):
        cfr(unlabelled=0)
    with pytest.raises(RecipeError, match="there is no method 'nobody'"):
        cfr(host="nobody")
    with pytest.raises(RecipeError, match=r"methods\.cfr\.grid"):
        cfr(input="upsample", grid=2)
    with pytest.raises(RecipeError, match=r"methods\.cfr\.sam\.side"):
        cfr(input="small")
    with pytest.raises(RecipeError, match="A canvas of 64 pixels a side holds 16 slices"):
        cfr({"patch": [16, 16, 24]})
    with pytest.raises(RecipeError, match=r"methods\.mean_teacher"):
        recipe = recipe_for("cfr")
        make_method(
            recipe.model_copy(update={"methods": {**recipe.methods, "mean_teacher": {"wait": 1}}}),
            Task(1, TWO, 2, 4, 4),
        )
