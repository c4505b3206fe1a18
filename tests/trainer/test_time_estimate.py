"""How long a run would take, told before it begins, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semiseg.dataset import Dataset, make_split
from tests.trainer.factories import make_recipe_for, write_phantoms
from trainer.errors import RecipeError
from trainer.plan import TrainingPlan, make_plan
from trainer.recipe import Recipe
from trainer.recipe_files import find_recipe, read_document
from trainer.recipe_planning import PlanningContext
from trainer.scan_facts import collect_scan_facts
from trainer.time_estimate import TimeEstimate, TimeEstimator, format_duration, parse_duration


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"), labelled=3)


@pytest.fixture
def context(dataset: Dataset, tmp_path: Path) -> PlanningContext:
    return PlanningContext(dataset, make_split(dataset), tmp_path / "cache", "cpu")


SMALL = {"patch": [16, 16, 8], "updates": 8}


def costs_of(context: PlanningContext, recipe: Recipe) -> list[TimeEstimate]:
    return context.estimate_time(recipe, None)


@pytest.mark.parametrize(
    ("method", "switches", "parts"),
    [
        ("supervised", {}, [("supervised", 8)]),
        ("mn", {"iterations": 2}, [("mn", 14)]),
        ("self_training", {}, [("self_training: labels of the unlabelled scans", 0), ("self_training", 8)]),
        ("cfr", {}, [("cfr: labels of the unlabelled scans", 0), ("cfr", 3), ("mean_teacher", 8)]),
        ("atlas", {}, [("atlas: registration", 0), ("mean_teacher", 8)]),
    ],
)
def test_every_stage_and_what_is_done_once_is_told(
    context: PlanningContext, method: str, switches: dict[str, Any], parts: list[tuple[str, int]]
) -> None:
    found = costs_of(context, make_recipe_for(method, SMALL, **switches))
    assert [(cost.name, cost.steps) for cost in found] == parts
    assert all(cost.seconds > 0 for cost in found)
    assert not list(context.cache.parent.glob("*/log.jsonl")), "nothing was trained"


def test_the_members_of_a_committee_are_told_and_what_rounds_share_is_told_once(context: PlanningContext) -> None:
    members = [{"method": "supervised"}, {"method": "supervised", "seed": 1, "updates": 4}]
    one = costs_of(context, make_recipe_for("committee", SMALL, members=members, atlas=True))
    assert [(cost.name, cost.steps) for cost in one] == [
        ("committee: supervised (seed 0): supervised", 8),
        ("committee: supervised (seed 0): labels", 0),
        ("committee: supervised (seed 1): supervised", 4),
        ("committee: supervised (seed 1): labels", 0),
        ("committee: registration", 0),
        ("supervised", 8),
    ]
    two = costs_of(context, make_recipe_for("committee", SMALL, members=members[:1], rounds=2, atlas=False))
    assert sum(cost.name.endswith("supervised (seed 0): supervised") for cost in two) == 1
    assert sum(cost.steps for cost in two) == 8 + 2 * 8 + 8
    folds = costs_of(
        context, make_recipe_for("committee", SMALL, members=members[:1], atlas=False, weighing="cross_fitted")
    )
    assert [cost.name for cost in folds if "2 times" in cost.name] == [
        "committee: supervised (seed 0): supervised, 2 times"
    ]


def test_a_budget_becomes_the_most_updates_that_fit(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(dataset)
    scans = collect_scan_facts(dataset, (*split.labelled, *split.unlabelled), "RAS")
    costs = TimeEstimator(tmp_path, "cpu", scans)
    monkeypatch.setattr(TimeEstimator, "_step", lambda self, plan, number, cases: 0.5)
    monkeypatch.setattr(TimeEstimator, "_prediction", lambda self, plan, cases: 2.0)

    def plan_of(updates: int, method: str = "supervised") -> TrainingPlan:
        return make_plan(dataset, split, make_recipe_for(method, {**SMALL, "updates": updates}), scans=scans)

    assert costs.updates_within(100.0, plan_of) == 200
    unlabelled = len(split.unlabelled)
    fixed = 3 * 0.5 + 2.0 * unlabelled  # what CFR does before the student's first update
    assert costs.updates_within(100.0, lambda n: plan_of(n, "cfr")) == int((100 - fixed) / 0.5) // 8 * 8
    with pytest.raises(RecipeError, match="allows 40 updates on this machine, which is too few; 64 take 32 s"):
        costs.updates_within(20.0, plan_of)


def test_with_a_budget_the_updates_and_on_a_processor_the_size_follow_from_it(
    context: PlanningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(self: TimeEstimator, plan: TrainingPlan, number: int, cases: Any) -> float:
        return 0.1 * plan.recipe.student["channels"][0] / 8

    monkeypatch.setattr(TimeEstimator, "_step", seconds)
    document = read_document(find_recipe("default"), ["method=supervised", "segments={}"])
    short = context.decide(document, None, 60.0)
    assert short.recipe.student["channels"][0] == 8 and short.recipe.updates == 600
    assert "as many as fit into 60 s" in next(d.reason for d in short.decisions if d.key == "updates")
    long = context.decide(document, None, 3600.0)
    assert long.recipe.student["channels"][0] == 16 and long.recipe.updates == 18_000
    with pytest.raises(RecipeError, match="A budget decides the number of updates, but the recipe sets"):
        context.decide({**document, "updates": 100}, None, 60.0)


@pytest.mark.parametrize(
    ("budget", "method", "size", "updates"),
    # An update of the networks takes 0.2 + 0.1 + 0.1 s with the tiny student and 0.4 + 0.2 + 0.2 s with the small one.
    [(40.0, "supervised", 8, 400), (300.0, "committee", 8, 744), (3600.0, "committee", 16, 4496)],
)
def test_a_budget_decides_whether_a_committee_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, method: str, size: int, updates: int
) -> None:
    def seconds(self: TimeEstimator, plan: TrainingPlan, number: int, cases: Any) -> float:
        return 0.1 * plan.recipe.student["channels"][0] / 8

    monkeypatch.setattr(TimeEstimator, "_step", seconds)
    monkeypatch.setattr(TimeEstimator, "_prediction", lambda self, plan, cases: 0.01)
    monkeypatch.setattr("trainer.time_estimate._registration", lambda plan, cases: 0.01)
    dataset = write_phantoms(tmp_path / "data")
    context = PlanningContext(dataset, make_split(dataset), tmp_path / "cache", "cpu")
    document = read_document(find_recipe("default"), ["segments={}"])
    planned = context.decide(document, None, budget)
    assert (planned.recipe.method, planned.recipe.student["channels"][0]) == (method, size)
    assert planned.recipe.updates == updates
    decided = {one.key: one for one in planned.decisions}
    assert decided["method"].value == method
    assert ("too short for a committee" in decided["method"].reason) == (method == "supervised")
    again = context.decide(document, planned.recipe.model_dump(mode="json"), budget)
    assert again.recipe == planned.recipe, "a resumed run keeps its method and its members"


def test_a_run_of_a_version_without_committees_in_the_default_recipe_goes_on(context: PlanningContext) -> None:
    document = read_document(find_recipe("default"), ["segments={}"])
    now = context.decide({**document, "method": "supervised"}, None, None).recipe.model_dump(mode="json")
    earlier = {**now, "methods": {name: one for name, one in now["methods"].items() if name != "committee"}}
    again = context.decide(document, earlier, None).recipe
    assert again.model_dump(mode="json") == earlier


def test_only_a_budget_that_is_too_small_decides_against_a_committee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: TimeEstimator, plan: TrainingPlan, number: int, cases: Any) -> float:
        raise RecipeError("Registration needs SimpleITK.")

    monkeypatch.setattr(TimeEstimator, "_step", fails)
    dataset = write_phantoms(tmp_path / "data")
    context = PlanningContext(dataset, make_split(dataset), tmp_path / "cache", "cpu")
    with pytest.raises(RecipeError, match="SimpleITK"):
        context.decide(read_document(find_recipe("default"), ["segments={}"]), None, 60.0)


def test_a_run_that_is_gone_on_with_keeps_what_was_decided(context: PlanningContext) -> None:
    document = read_document(find_recipe("default"), ["method=supervised", "segments={}"])
    first = context.decide(document, None, None)
    earlier = {**first.recipe.model_dump(mode="json"), "updates": 777, "batch": 2}
    again = context.decide(document, earlier, 3600.0)
    assert (again.recipe.updates, again.recipe.batch) == (777, 2)
    assert (
        again.recipe.model_copy(update={"updates": first.recipe.updates, "batch": first.recipe.batch}) == first.recipe
    )
    assert again.decisions == ()


def test_a_run_of_a_version_without_a_key_goes_on_with_its_default(context: PlanningContext) -> None:
    document = read_document(find_recipe("default"), ["method=supervised", "segments={}"])
    earlier = context.decide(document, None, None).recipe.model_dump(mode="json")
    del earlier["memory_format"]
    assert context.decide(document, earlier, None).recipe.memory_format == "contiguous"


def test_times_for_people() -> None:
    assert [parse_duration(text) for text in ("90s", "30m", "1.5h")] == [90.0, 1800.0, 5400.0]
    for wrong in ("", "30", "m", "-5m", "infh", "an hour"):
        with pytest.raises(RecipeError, match="A budget is a time such as 30m"):
            parse_duration(wrong)
    assert [format_duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
