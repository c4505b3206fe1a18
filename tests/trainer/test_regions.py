"""Overlapping regions and several channels, in every method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.evaluation.evaluator import evaluate
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from tests.trainer.factories import ALL_METHODS, load_run_weights, make_tiny_plan, train_on_cpu
from tests.trainer.tumour_dataset import REGIONS, tumour_recipe, write_tumours
from trainer.engine import open_run
from trainer.errors import RecipeError


@pytest.mark.parametrize("in_the_dataset", [False, True])
def test_overlapping_regions_are_learned_and_judged_one_by_one(tmp_path: Path, in_the_dataset: bool) -> None:
    dataset = write_tumours(tmp_path / "data", regions_in_the_dataset=in_the_dataset)
    recipe = tumour_recipe(regions={} if in_the_dataset else REGIONS)
    manifest = train_on_cpu(dataset, recipe, tmp_path / "run")
    assert (manifest.activation, manifest.outputs) == ("sigmoid", 3)
    assert [(s.name, s.values) for s in manifest.segments] == [(n, tuple(v)) for n, v in REGIONS.items()]
    manifest, engine = open_run(tmp_path / "run", "cpu")
    found = evaluate(Segmenter(manifest, engine, SlidingWindowOptions()).segment, dataset, ["t4"])
    dice = {row.segment: row.score.dice for row in found.rows}
    assert set(dice) == set(REGIONS), "the region 'enhancing' is the value 3, whoever names it"
    assert dice["whole"] > 0.8
    assert not found.failures


@pytest.mark.parametrize("method", [m for m in ALL_METHODS if m != "supervised"])
def test_every_method_learns_regions(tmp_path: Path, method: str) -> None:
    dataset = write_tumours(tmp_path / "data")
    manifest = train_on_cpu(dataset, tumour_recipe(method, updates=4), tmp_path / "run")
    assert manifest.activation == "sigmoid"
    assert all(bool(np.isfinite(v.numpy()).all()) for v in load_run_weights(tmp_path / "run").values())


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ({"whole": [1, 7]}, "contains the value 7"),
        ({f"r{k}": [1] for k in range(9)}, "at most 8"),
    ],
)
def test_regions_that_cannot_be_are_refused(tmp_path: Path, regions: dict[str, list[int]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_tiny_plan(write_tumours(tmp_path / "data"), tumour_recipe(regions=regions))
