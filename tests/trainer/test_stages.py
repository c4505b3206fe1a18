"""Stages: any method after any first stage, each asked about its own steps; methods from outside the package."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    PARTNER_NETWORK,
    SAM_CONFIG,
    SHORT_SCHEDULE,
    load_run_weights,
    make_batch,
    make_recipe_for,
    make_tiny_recipe,
    train_and_interrupt,
    train_on_cpu,
    write_phantoms,
)
from trainer.errors import RecipeError
from trainer.methods import METHODS, find_method, make_method
from trainer.methods.method import SegmentationTask
from trainer.methods.registry import method_class
from trainer.networks.recorded_calls import record_calls
from trainer.patches import BatchComposition
from trainer.recipe_files import make_recipe
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses

TASK = SegmentationTask(1, ExclusiveClasses(2), 2, 4, 12)
OWN = '''
"""A method of a user's own: supervised, with a loss that is ten times as large."""

from trainer.methods.supervised import Supervised


class Tenfold(Supervised):
    name = "tenfold"

    class Config(Supervised.Config):
        factor: float = 10.0

    def loss(self, networks, batch, step_plan):
        terms = super().loss(networks, batch, step_plan)
        return {**terms, "total": self.config.factor * terms["total"]}


class NoMethod:
    name = "none"
'''


def stages_of(name: str, methods: dict[str, Any], changes: dict[str, Any] | None = None) -> StageSequence:
    recipe = make_recipe_for(name, changes)
    recipe = recipe.model_copy(update={"methods": {**recipe.methods, **methods}})
    return StageSequence(make_method(recipe, TASK))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "clinic_methods.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("clinic_methods", None)
    return "clinic_methods:Tenfold"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


# --- which stage a step belongs to ------------------------------------------------------------------------------------


def test_three_stages_follow_each_other_and_each_counts_its_own_steps() -> None:
    stages = stages_of(
        "comparative",
        {
            "comparative": {**SHORT_SCHEDULE, "then": "cfr"},
            "cfr": {"sam": SAM_CONFIG, "sam_updates": 3, "host": "mean_teacher"},
        },
        {"updates": 5},
    )
    assert [stage.name for stage in stages.stages] == ["comparative", "cfr", "mean_teacher"]
    assert [(s.name, at) for s, at in map(stages.stage_at, range(stages.steps))] == [
        *(("comparative", k) for k in range(4)),
        *(("cfr", k) for k in range(3)),
        *(("mean_teacher", k) for k in range(5)),
    ]
    assert [s for s in range(stages.steps) if stages.is_boundary(s)] == [2, 4, 7]
    assert stages.labelling_sources(7) == ("cfr",)
    assert [stages.step_plan(s).label for s in (0, 4, 7)] == ["features", "fine-tune", "mean_teacher-train"]
    with pytest.raises(IndexError):
        stages.stage_at(stages.steps)


def test_networks_of_other_stages_are_out_of_a_stages_sight_and_in_evaluation_mode() -> None:
    stages = stages_of("comparative", {"comparative": {**SHORT_SCHEDULE, "then": "cps"}})
    networks = stages.build()
    assert list(networks) == ["student", "second", "convergence"]
    seen: list[set[str]] = []
    first = stages.stages[0]
    original = first.prepare
    first.prepare = lambda networks, step_plan: (seen.append(set(networks)), original(networks, step_plan))  # type: ignore
    stages.prepare(networks, stages.step_plan(0), 0)
    assert seen == [{"student", "convergence"}]
    assert networks["student"].training and not networks["second"].training
    assert set(stages.committee(networks)) == {"student", "second"}


def test_every_stage_has_its_demands_on_several_processes_checked() -> None:
    """Comparative hands over to dual, which needs a labelled patch in every process."""
    batch = {"batch": 4, "methods": {}}
    stages = stages_of(
        "comparative", {"comparative": {**SHORT_SCHEDULE, "then": "dual"}, "dual": {"partner": PARTNER_NETWORK}}, batch
    )
    stages.check_parts(2)
    with pytest.raises(RecipeError, match="dual compares its networks on labelled patches: 2 in 4 part"):
        stages_of(
            "comparative",
            {"comparative": {**SHORT_SCHEDULE, "volumes": 4, "then": "dual"}, "dual": {"partner": PARTNER_NETWORK}},
            batch,
        ).check_parts(4)


def test_two_networks_of_one_name_are_refused() -> None:
    stages = stages_of("comparative", {"comparative": {**SHORT_SCHEDULE, "then": "supervised"}})
    stages.stages[0].build = stages.last.build  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="Two stages build a network named 'student'"):
        stages.build()


def test_a_chain_of_three_stages_trains_and_resumes(dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe_for("comparative", {"patch": [16, 16, 16], "updates": 4, "checkpoint_every": 1}, then="cfr")
    recipe = recipe.model_copy(update={"methods": {**recipe.methods, "cfr": {"sam": SAM_CONFIG, "sam_updates": 2}}})
    train_on_cpu(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache")
    whole = load_run_weights(tmp_path / "whole")
    for step in (3, 5, 8):
        run = tmp_path / f"broken{step}"
        train_and_interrupt(dataset, recipe, run, step, cache=tmp_path / "cache")
        train_on_cpu(dataset, recipe, run, cache=tmp_path / "cache", resume=True)
        again = load_run_weights(run)
        assert all(torch.equal(whole[name], again[name]) for name in whole), step


# --- terms that a stage adds to a later one's loss ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean_teacher", "uamt", "acmt", "cps", "supervised", "magicnet"])
def test_guidance_shares_the_pass_of_a_loss_that_sees_the_patches_as_they_are(name: str) -> None:
    stages = stages_of(
        "cfr", {"cfr": {"sam": SAM_CONFIG, "sam_updates": 1, "host": name}, "magicnet": {"cubes": 2, "hidden": 8}}
    )
    networks = stages.build()
    step = stages.steps - 1
    labels = torch.randint(0, 3, (4, 8, 8, 8), generator=torch.Generator().manual_seed(1))
    batch = replace(make_batch(2, 2, step=step), guides={"cfr": labels})
    step_plan = stages.step_plan(step)
    stages.prepare(networks, step_plan, step)
    passes: list[tuple[int, ...]] = []
    handle = networks["student"].register_forward_hook(lambda m, x, y: passes.append(tuple(x[0].shape)))
    stages.loss(networks, batch, step_plan)
    handle.remove()
    with_guide = len(passes)
    passes.clear()
    handle = networks["student"].register_forward_hook(lambda m, x, y: passes.append(tuple(x[0].shape)))
    stages.last.loss({k: n for k, n in networks.items() if k != "sam"}, batch, step_plan)
    handle.remove()
    assert with_guide == len(passes)


def test_calls_are_told_apart_by_their_memory() -> None:
    network = torch.nn.Conv3d(1, 2, 1)
    images = torch.randn(4, 1, 3, 3, 3)
    with record_calls(network) as calls:
        whole = network(images)
        network(images + 1.0)
        assert torch.equal(calls.logits_for(images, 2), whole[2:])
        assert calls.logits_for(images, 4).shape == (0, 2, 3, 3, 3)
    with record_calls(network) as calls:
        rows = network(images[1:])
        assert calls.logits_for(images, 1) is rows
        assert torch.allclose(calls.logits_for(images, 2), whole[2:]), "no such call was made, so it is made now"
    with record_calls(network) as calls, torch.no_grad():
        network(images)
    assert calls.logits_for(images).requires_grad, "a call without gradients is of no use"


# --- methods from outside --------------------------------------------------------------------------------------------


def test_a_method_of_ones_own_is_named_by_module_and_class(own: str, dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [16, 16, 16], "optimiser": {"kind": "sgd", "rate": 0.01}}
    train_on_cpu(dataset, make_tiny_recipe("supervised", changes), tmp_path / "plain", cache=tmp_path / "cache")
    document = {**make_tiny_recipe("supervised", changes).model_dump(mode="json"), "method": own}
    manifest = train_on_cpu(dataset, make_recipe(document), tmp_path / "own", cache=tmp_path / "cache")
    assert manifest.provenance.method == own
    plain, tenfold = load_run_weights(tmp_path / "plain"), load_run_weights(tmp_path / "own")
    assert any(not torch.equal(plain[name], tenfold[name]) for name in plain)
    same = make_recipe({**document, "methods": {"tenfold": {"factor": 1.0}}})
    train_on_cpu(dataset, same, tmp_path / "same", cache=tmp_path / "cache")
    assert all(torch.equal(plain[name], value) for name, value in load_run_weights(tmp_path / "same").items())


@pytest.mark.parametrize(("name", "switch"), [("cfr", "host"), ("comparative", "then"), ("contrastive", "then")])
def test_a_method_of_ones_own_may_follow_any_first_stage(own: str, name: str, switch: str) -> None:
    stages = StageSequence(make_method(make_recipe_for(name, **{switch: own}), TASK))
    assert stages.last.name == "tenfold"
    assert stages.step_plan(stages.steps - 1).composition == (
        BatchComposition(2, 2) if name == "cfr" else BatchComposition(4, 0)
    )


def test_an_installed_package_may_offer_a_method_by_name(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "clinic-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clinic\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[semiseg.methods]\ntenfold = {own}\n")
    assert method_class("tenfold").name == "tenfold"
    assert find_method(make_tiny_recipe("tenfold")).name == "tenfold"
    with pytest.raises(ValueError, match=r"there is no method 'elevenfold'; there are supervised, .*tenfold"):
        method_class("elevenfold")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("clinic_methods:Missing", "has no class 'Missing'"),
        ("clinic_methods:NoMethod", "does not derive from"),
        ("no_such_module:Method", "cannot be imported .* is it installed, or on PYTHONPATH"),
        ("nobody", "There is no method 'nobody'; there are supervised"),
    ],
)
def test_what_is_no_method_is_refused_by_name(own: str, name: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        find_method(make_tiny_recipe("supervised").model_copy(update={"method": name}))


def test_every_built_in_name_is_its_classes_own() -> None:
    assert all(METHODS[name].name == name for name in METHODS)
