"""From a recipe that leaves keys open to one that is decided, for a dataset, a machine, and a budget of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.dataset import Dataset, Split
from trainer.errors import RecipeError
from trainer.plan import ProgressCallback, TrainingPlan, make_plan
from trainer.planning_facts import MachineFacts, collect_dataset_facts
from trainer.recipe import Recipe, make_recipe
from trainer.recipe_rules import RecipeDecision, decide_open_keys, open_keys, read_key, write_key
from trainer.scan_facts import ScanFacts, collect_scan_facts
from trainer.time_estimate import TimeEstimate, TimeEstimator, format_duration

SUFFICIENT_UPDATES = 2000  # updates from which on a processor's time goes into a larger network
UPDATES_KEY = "updates"


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe with nothing open.

    Attributes:
        recipe: The recipe.
        decisions: What was decided, in its order.
        scans: What is known of the training scans; None where nothing had to be known.
    """

    recipe: Recipe
    decisions: tuple[RecipeDecision, ...] = ()
    scans: ScanFacts | None = None


@dataclass(frozen=True)
class PlanningContext:
    """What a recipe is decided for.

    Attributes:
        dataset: The dataset.
        split: Which scans are labelled and unlabelled.
        cache: Folder of the preprocessed scans.
        device: ``cpu`` or ``cuda``; None for a GPU where there is one.
        watch: Called with (what is done, number done, total).
    """

    dataset: Dataset
    split: Split
    cache: Path
    device: str | None = None
    watch: ProgressCallback | None = None

    def plan(self, recipe: Recipe, scans: ScanFacts | None) -> TrainingPlan:
        """The plan of a recipe."""
        return make_plan(self.dataset, self.split, recipe, self.watch, scans)

    def estimate_time(self, recipe: Recipe, scans: ScanFacts | None) -> list[TimeEstimate]:
        """What a run of a recipe takes here, part by part."""
        scans = scans or self._scans(recipe.model_dump(mode="json"))
        return TimeEstimator(self.cache, self.device, scans, self.watch).estimate(self.plan(recipe, scans))

    def decide(
        self, document: Mapping[str, Any], earlier: Mapping[str, Any] | None, budget: float | None
    ) -> PlannedRecipe:
        """Decide what a recipe leaves open.

        Args:
            document: The recipe as YAML gives it.
            earlier: The recipe of the run that is gone on with, which was decided before.
            budget: Seconds that training may take; None for no limit.

        Raises:
            RecipeError: What is decided, or what is not, cannot work; or the budget is too small.
        """
        keys = open_keys(document)
        if budget is not None and UPDATES_KEY not in keys and earlier is None:
            raise RecipeError("A budget decides the number of updates, and the recipe says it: leave one of them out.")
        if not keys:
            return PlannedRecipe(make_recipe(dict(document)))
        if earlier is not None:
            taken = dict(document)
            for key in keys:
                write_key(taken, key, read_key(earlier, key))
            return PlannedRecipe(make_recipe(taken))
        scans = self._scans(document)
        machine = MachineFacts.detect(self.device)
        if budget is None:
            return self._decided(document, scans, machine)
        return self._within(budget, document, scans, machine)

    def _within(
        self, budget: float, document: Mapping[str, Any], scans: ScanFacts, machine: MachineFacts
    ) -> PlannedRecipe:
        """Everything decided, with as many updates as fit; on a processor the larger network, if they are enough."""
        sizes = ("small", "auto") if machine.gpu is None and document.get("student") == "auto" else ("",)
        for number, size in enumerate(sizes):
            tried = {**document, "student": size} if size else dict(document)
            first = self._decided(tried, scans, machine)

            def plan_of(updates: int, recipe: Recipe = first.recipe) -> TrainingPlan:
                return self.plan(recipe.model_copy(update={UPDATES_KEY: updates}), scans)

            try:
                updates = TimeEstimator(self.cache, self.device, scans, self.watch).updates_within(budget, plan_of)
            except RecipeError:
                if number == len(sizes) - 1:
                    raise
                continue
            if updates >= SUFFICIENT_UPDATES or number == len(sizes) - 1:
                break
        reason = f"as many as {format_duration(budget)} allow on {machine}, timed with a few steps"
        made = RecipeDecision(UPDATES_KEY, updates, reason)
        decisions = tuple(made if one.key == UPDATES_KEY else one for one in first.decisions)
        return PlannedRecipe(first.recipe.model_copy(update={UPDATES_KEY: updates}), decisions, scans)

    def _decided(self, document: Mapping[str, Any], scans: ScanFacts, machine: MachineFacts) -> PlannedRecipe:
        told = {name: (rule or {}).get("modality") for name, rule in (document.get("series") or {}).items()}
        facts = collect_dataset_facts(self.dataset, self.split, _orientation(document), told, scans)
        done, decisions = decide_open_keys(document, facts, machine)
        return PlannedRecipe(make_recipe(done), tuple(decisions), scans)

    def _scans(self, document: Mapping[str, Any]) -> ScanFacts:
        unlabelled = (*self.split.unlabelled, *(self.split.test if document.get("transductive") else ()))
        return collect_scan_facts(self.dataset, (*self.split.labelled, *unlabelled), _orientation(document), self.watch)


def _orientation(document: Mapping[str, Any]) -> str:
    return str((document.get("preparation") or {}).get("orientation", "RAS"))
