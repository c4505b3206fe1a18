"""CFR, second part: what the foundation model then tells the host, and what is left of it at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semiseg.dataset import Dataset
from tests.trainer.cfr_methods import TWO_CLASSES, make_cfr
from tests.trainer.factories import (
    SAM_CONFIG,
    THREE_LEVEL_NETWORK,
    clone,
    load_run_weights,
    make_batch,
    make_recipe_for,
    make_tiny_plan,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.cases import encode_prediction, prepare_cases
from trainer.engine import TorchEngine
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods import METHODS, make_method
from trainer.methods.cfr import CFR
from trainer.methods.method import SegmentationTask
from trainer.patches import Batch
from trainer.plan import make_manifest
from trainer.stages import StageSequence
from trainer.validation import make_segmenter


def told(method: CFR, labels: torch.Tensor | None = None) -> Batch:
    """A batch of the host's second step: two labelled patches and two that the foundation model labelled."""
    batch = make_batch(2, 2, step=method.steps + 1)
    pseudo = torch.randint(0, 3, (2, 8, 8, 8), generator=torch.Generator().manual_seed(5)) if labels is None else labels
    return replace(batch, guides={"cfr": torch.cat([torch.zeros_like(pseudo), pseudo])})


@pytest.mark.parametrize("host", ["mean_teacher", "acmt", "uamt", "cps", "supervised"])
def test_without_weight_on_the_pseudo_labels_the_step_is_the_hosts_own(host: str) -> None:
    method = make_cfr(host=host, pseudo_weight=0.0)
    stages, batch = StageSequence(method), told(method)
    networks = stages.build()
    step_plan = stages.step_plan(batch.step)
    alone = METHODS[host](method.recipe, method.task)
    torch.manual_seed(7)
    one = stages.loss(networks, batch, step_plan)["total"]
    torch.manual_seed(7)
    other = alone.loss(networks, batch, step_plan)["total"]
    torch.testing.assert_close(one, other)


def test_without_consistency_perfect_pseudo_labels_are_supervision() -> None:
    method = make_cfr({"updates": 4})
    method.host.config = method.host.config.model_copy(update={"weight": 0.0})
    stages, batch = StageSequence(method), told(method)
    networks = stages.build()
    logits, pseudo = networks["student"](batch.images), batch.guides["cfr"][2:]
    expected = supervised_loss(logits[:2], batch.labels[:2], TWO_CLASSES) + supervised_loss(
        logits[2:], pseudo, TWO_CLASSES
    )
    torch.testing.assert_close(stages.loss(networks, batch, stages.step_plan(batch.step))["total"], expected)


@pytest.mark.parametrize("host", [name for name in METHODS if name not in ("distil", "cfr")])
def test_the_pseudo_labels_train_the_student_of_every_host(host: str) -> None:
    method = make_cfr({"updates": 8, **({"student": THREE_LEVEL_NETWORK} if host == "urpc" else {})}, host=host)
    stages = StageSequence(method)
    torch.manual_seed(0)
    networks = stages.build()
    # The host's last step in which the student learns from labelled and unlabelled patches.
    step = max(
        s
        for s in range(method.steps, stages.steps)
        if "student" in stages.step_plan(s).rates
        and stages.step_plan(s).composition.unlabelled
        and stages.step_plan(s).composition.labelled
    )
    step_plan = stages.step_plan(step)
    stages.prepare(networks, step_plan, step)
    labelled = step_plan.composition.labelled
    found = []
    for seed in (1, 2):
        batch = make_batch(labelled, step_plan.composition.unlabelled, step=step)
        pseudo = torch.randint(0, 3, batch.labels.shape, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(3)
        total = stages.loss(
            networks,
            replace(batch, guides={"cfr": pseudo, "atlas": batch.labels, "committee": batch.labels}),
            step_plan,
        )["total"]
        weights = [p for p in networks["student"].parameters() if p.requires_grad]
        found.append(torch.autograd.grad(total, weights, allow_unused=True))
        assert all(p.grad is None for p in networks["sam"].parameters())
    apart = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert apart > 1e-6


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 2.0), ("ramp", 2 * np.exp(-5 / 4)), ("falling", 1.0)])
def test_the_weight_of_the_pseudo_labels_follows_its_schedule(schedule: str, expected: float) -> None:
    method = make_cfr({"updates": 100}, pseudo_weight=2.0, pseudo_schedule=schedule)
    assert method.guidance_weight(50) == pytest.approx(expected)


def test_on_the_fly_the_foundation_model_labels_the_patch_itself() -> None:
    method = make_cfr(pseudo_labels="on_the_fly")
    stages, batch = StageSequence(method), told(method)
    networks = stages.build()
    step_plan = stages.step_plan(batch.step)
    stages.prepare(networks, step_plan, batch.step)
    assert not networks["sam"].training
    with torch.no_grad():
        pseudo = torch.softmax(method.as_volume_network(networks["sam"])(batch.images[2:]), dim=1).argmax(dim=1)
    assert pseudo.shape == (2, 8, 8, 8)
    assert pseudo.dtype == torch.long
    cached, whole = replace(batch, guides={"cfr": torch.cat([batch.labels[:2], pseudo])}), StageSequence(make_cfr())
    whole.build()
    one, other = stages.loss(networks, batch, step_plan)["total"], whole.loss(networks, cached, step_plan)["total"]
    torch.testing.assert_close(one, other)


def test_self_training_learns_from_the_foundation_models_labels_in_every_round() -> None:
    """Algorithm 1, line 18: L_pl is added at every update, beside the labels of self-training's own rounds."""
    method = make_cfr({"updates": 10}, host="self_training", pseudo_weight=0.5)
    stages, first = StageSequence(method), method.steps
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
        assert stages.step_plan(step).composition.unlabelled == 2
        logits = networks["student"](at.images)
        expected = supervised_loss(logits[:2], labels[:2], TWO_CLASSES) + rounds * supervised_loss(
            logits[2:], own_labels, TWO_CLASSES
        )
        expected = expected + 0.5 * supervised_loss(logits[2:], at.guides["cfr"][2:], TWO_CLASSES)
        torch.testing.assert_close(stages.loss(networks, at, stages.step_plan(step))["total"], expected)


def test_a_host_that_never_shows_the_student_the_patches_themselves_is_guided_in_a_pass_of_its_own() -> None:
    method = make_cfr({"updates": 8}, host="bcp")
    stages, batch = StageSequence(method), replace(told(method), step=method.steps + 7)
    networks, step_plan = stages.build(), stages.step_plan(batch.step)
    terms = stages.loss(networks, batch, step_plan)
    expected = supervised_loss(networks["student"](batch.images[2:]), batch.guides["cfr"][2:], TWO_CLASSES)
    torch.testing.assert_close(terms["cfr"], expected.detach())


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("pseudo", ["cached", "on_the_fly"])
def test_the_foundation_model_is_fixed_while_the_student_learns_and_not_kept(
    dataset: Dataset, tmp_path: Path, pseudo: str
) -> None:
    recipe = make_recipe_for("cfr", {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 3}, pseudo_labels=pseudo)
    plan = make_tiny_plan(dataset, recipe)
    manifest = train_on_cpu(dataset, recipe, tmp_path / "run", cache=tmp_path / "cache")
    after = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["networks"]["sam"]
    kept = load_run_weights(tmp_path / "run")
    student = plan.stages.last.build_student().state_dict()
    assert kept.keys() == student.keys()
    assert manifest.provenance.parameters == sum(v.numel() for v in student.values())

    def stop(step: int, steps: int, values: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(dataset, recipe, tmp_path / "early", cache=tmp_path / "cache", report=stop)
    early = torch.load(tmp_path / "early" / "checkpoint.pt", weights_only=True)["networks"]["sam"]
    assert weights_equal(clone(early), clone(after)), "after its last step nothing of it moved"


def test_cached_labels_are_those_of_the_foundation_model(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 3}
    recipe = make_recipe_for("cfr", changes, sam={**SAM_CONFIG, "finetune": "whole"}, sam_optimiser={"rate": 0.03})

    def stop(step: int, steps: int, values: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(dataset, recipe, tmp_path / "run", report=stop)
    plan = make_tiny_plan(dataset, recipe)
    found = {p.stem: np.load(p) for p in (tmp_path / "run" / "pseudo" / "3" / "cfr").glob("*.npy")}
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
        segmenter = make_segmenter(manifest, TorchEngine(labeller))
        made = {i: segmenter.segment_preprocessed(np.asarray(cases[i].image)) for i in found}
        encoded = {i: encode_prediction(made[i], plan.segments) for i in found}
        same[who] = all(np.array_equal(encoded[i], found[i]) for i in found)
    assert same == {"sam": True, "student": False}


def test_the_teacher_of_the_host_follows_its_student() -> None:
    stages = StageSequence(make_cfr())
    networks = stages.build()
    with torch.no_grad():
        for p in networks["student"].parameters():
            p.add_(1.0)
    stages.after_update(networks, stages.step_plan(0), 0)
    assert not weights_equal(networks["student"].state_dict(), networks["teacher"].state_dict()), "not yet"
    stages.after_update(networks, stages.step_plan(3), 3)
    assert weights_equal(networks["student"].state_dict(), networks["teacher"].state_dict()), "its first step copies"


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"methods\.cfr\.volumes: 2 patches cannot be shared evenly by 4 part"):
        make_cfr({"accumulate": 4})
    with pytest.raises(RecipeError, match="has none; train with `supervised`"):
        make_cfr(unlabelled=0)
    with pytest.raises(RecipeError, match="there is no method 'nobody'"):
        make_cfr(host="nobody")
    with pytest.raises(RecipeError, match=r"methods\.cfr\.grid"):
        make_cfr(input="upsample", grid=2)
    with pytest.raises(RecipeError, match=r"methods\.cfr\.sam\.side"):
        make_cfr(input="small")
    with pytest.raises(RecipeError, match="An image of 64 x 64 pixels holds 16 slices"):
        make_cfr({"patch": [16, 16, 24]})
    with pytest.raises(RecipeError, match=r"methods\.mean_teacher"):
        recipe = make_recipe_for("cfr")
        make_method(
            recipe.model_copy(update={"methods": {**recipe.methods, "mean_teacher": {"wait": 1}}}),
            SegmentationTask(1, TWO_CLASSES, 2, 4, 4),
        )
