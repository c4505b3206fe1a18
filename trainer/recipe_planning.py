"""Decision of the keys that a recipe leaves open, for a dataset, a machine, and a time budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.dataset import Dataset, Split
from trainer.errors import RecipeError
from trainer.plan import ProgressCallback, TrainingPlan, make_plan
from trainer.planning_facts import MachineFacts, collect_dataset_facts
from trainer.recipe import Recipe
from trainer.recipe_files import make_recipe
from trainer.recipe_rules import RecipeDecision, decide_open_keys, open_keys, read_key, write_key
from trainer.scan_facts import ScanFacts, collect_scan_facts
from trainer.time_estimate import TimeEstimate, TimeEstimator, format_duration

SUFFICIENT_UPDATES = 2000  # on a processor, the larger network is used if the budget allows this many updates
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
        """Decide everything, with as many updates as the budget allows.

        On a processor, the larger network is used if :data:`SUFFICIENT_UPDATES` of its updates fit into the budget.
        """
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
        reason = f"as many as fit into {format_duration(budget)} on {machine}, estimated from a few timed steps"
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
