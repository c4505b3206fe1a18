"""Decision of the keys that a recipe leaves open, for a dataset, a machine, and a time budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.dataset import Dataset, Split
from trainer.errors import BudgetTooSmallError, RecipeError
from trainer.plan import ProgressCallback, TrainingPlan, make_plan
from trainer.planning_facts import DatasetFacts, MachineFacts, collect_dataset_facts
from trainer.recipe import Recipe
from trainer.recipe_files import make_recipe
from trainer.recipe_keys import read_key, remove_key, write_key
from trainer.recipe_rules import (
    AUTO,
    COMMITTEE,
    RecipeDecision,
    decide_open_keys,
    open_keys,
)
from trainer.scan_facts import ScanFacts, collect_scan_facts
from trainer.time_estimate import TimeEstimate, TimeEstimator, format_duration

SUFFICIENT_UPDATES = 2000  # on a processor, the larger network is used if the budget allows this many updates
MIN_COMMITTEE_UPDATES = 600  # a committee is trained if the budget allows this many updates of its student
METHOD_KEY = "method"
UPDATES_KEY = "updates"


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe without open keys.

    Attributes:
        recipe: The recipe.
        decisions: Decisions, in the order in which they were made.
        scans: Sizes and values of the training scans; None if they were not needed.
    """

    recipe: Recipe
    decisions: tuple[RecipeDecision, ...] = ()
    scans: ScanFacts | None = None


@dataclass(frozen=True)
class BudgetChoice:
    """A choice that a time budget decides on.

    Attributes:
        keys: Keys of the recipe that make the choice.
        updates: Smallest number of updates with which it is taken; None if it is taken in any case.
    """

    keys: Mapping[str, Any]
    updates: int | None


@dataclass(frozen=True)
class PlanningContext:
    """Dataset, split and device for which a recipe is decided.

    Attributes:
        dataset: The dataset.
        split: Labelled and unlabelled scans.
        cache: Folder of the preprocessed scans.
        device: ``cpu`` or ``cuda``; None for a GPU if there is one.
        watch: Called with (activity, done, total).
    """

    dataset: Dataset
    split: Split
    cache: Path
    device: str | None = None
    watch: ProgressCallback | None = None

    def plan(self, recipe: Recipe, scans: ScanFacts | None) -> TrainingPlan:
        """Make the plan of a recipe."""
        return make_plan(self.dataset, self.split, recipe, self.watch, scans)

    def estimate_time(self, recipe: Recipe, scans: ScanFacts | None) -> list[TimeEstimate]:
        """Estimate the time of each part of a run on this machine."""
        scans = scans or self._scans(recipe.model_dump(mode="json"))
        return TimeEstimator(self.cache, self.device, scans, self.watch).estimate(self.plan(recipe, scans))

    def decide(
        self, document: Mapping[str, Any], earlier: Mapping[str, Any] | None, budget: float | None
    ) -> PlannedRecipe:
        """Decide the keys that a recipe leaves open.

        Args:
            document: The recipe as read from YAML.
            earlier: Recipe of the run that is resumed, whose decisions are used; None for a new run.
            budget: Time in seconds that training may take; None for no limit.

        Raises:
            RecipeError: The recipe is invalid, or the budget is too small.
        """
        keys = open_keys(document)
        if budget is not None and UPDATES_KEY not in keys and earlier is None:
            raise RecipeError(
                "A budget decides the number of updates, but the recipe sets `updates`: leave one of them out."
            )
        if not keys:
            return PlannedRecipe(make_recipe(dict(document)))
        if earlier is not None:
            earlier = make_recipe(dict(earlier)).model_dump(mode="json")  # with keys that its version did not have
            taken = dict(document)
            for key in keys:
                value = read_key(earlier, key)
                if value is None:  # the run was made before there was this key, or does not need it
                    remove_key(taken, key)
                else:
                    write_key(taken, key, value)
            return PlannedRecipe(make_recipe(taken))
        facts, machine = self._facts(document), MachineFacts.detect(self.device)
        if budget is None:
            return self._decided(document, facts, machine)
        return self._within(budget, document, facts, machine)

    def _within(
        self, budget: float, document: Mapping[str, Any], facts: DatasetFacts, machine: MachineFacts
    ) -> PlannedRecipe:
        """Decide everything, with as many updates as the budget allows.

        What takes the most time is tried first: a committee is trained if :data:`MIN_COMMITTEE_UPDATES` of its student
        fit into the budget, and on a processor the larger network is used if :data:`SUFFICIENT_UPDATES` do.
        """
        scans = facts.scans
        for choice in self._choices(document, facts, machine):
            first = self._decided({**document, **choice.keys}, facts, machine)

            def plan_of(updates: int, recipe: Recipe = first.recipe) -> TrainingPlan:
                return self.plan(recipe.model_copy(update={UPDATES_KEY: updates}), scans)

            try:
                updates = TimeEstimator(self.cache, self.device, scans, self.watch).updates_within(budget, plan_of)
            except BudgetTooSmallError:
                if choice.updates is None:
                    raise
                continue
            if choice.updates is None or updates >= choice.updates:
                break
        reason = f"as many as fit into {format_duration(budget)} on {machine}, estimated from a few timed steps"
        decided = {one.key: one for one in first.decisions} | {
            UPDATES_KEY: RecipeDecision(UPDATES_KEY, updates, reason)
        }
        if METHOD_KEY in choice.keys:
            words = f"{format_duration(budget)} are too short for a committee (docs/results/default)"
            decided = {METHOD_KEY: RecipeDecision(METHOD_KEY, choice.keys[METHOD_KEY], words)} | decided
        return PlannedRecipe(first.recipe.model_copy(update={UPDATES_KEY: updates}), tuple(decided.values()), scans)

    def _choices(
        self, document: Mapping[str, Any], facts: DatasetFacts, machine: MachineFacts
    ) -> Iterator[BudgetChoice]:
        """Return what a budget decides between, the longest training first; the last choice needs no minimum."""
        several_sizes = machine.gpu is None and document.get("student") == AUTO
        by_itself = self._decided(document, facts, machine).recipe.method
        methods: list[tuple[dict[str, Any], int | None]] = [({}, None)]
        if document.get(METHOD_KEY) == AUTO and by_itself == COMMITTEE:
            methods = [({}, MIN_COMMITTEE_UPDATES), ({METHOD_KEY: "supervised"}, None)]
        for keys, least in methods:
            if several_sizes:
                yield BudgetChoice({**keys, "student": "small"}, SUFFICIENT_UPDATES)
            yield BudgetChoice(keys, least)

    def _decided(self, document: Mapping[str, Any], facts: DatasetFacts, machine: MachineFacts) -> PlannedRecipe:
        done, decisions = decide_open_keys(document, facts, machine)
        return PlannedRecipe(make_recipe(done), tuple(decisions), facts.scans)

    def _facts(self, document: Mapping[str, Any]) -> DatasetFacts:
        told = {name: (rule or {}).get("modality") for name, rule in (document.get("series") or {}).items()}
        return collect_dataset_facts(self.dataset, self.split, _orientation(document), told, self._scans(document))

    def _scans(self, document: Mapping[str, Any]) -> ScanFacts:
        unlabelled = (*self.split.unlabelled, *(self.split.test if document.get("transductive") else ()))
        return collect_scan_facts(self.dataset, (*self.split.labelled, *unlabelled), _orientation(document), self.watch)


def _orientation(document: Mapping[str, Any]) -> str:
    return str((document.get("preparation") or {}).get("orientation", "RAS"))
