"""Weights of voxels and scans, and labels that nobody knows: they count so in the loss of every method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.dataset import Dataset, check_dataset, load_dataset
from semiseg.errors import DatasetError
from semiseg.evaluation.evaluator import evaluate
from semiseg.volumes.segmentation import Segment, Segmentation
from tests.trainer.factories import (
    ALL_METHODS,
    PARTNER_NETWORK,
    build_method,
    load_run_weights,
    make_batch,
    make_recipe_for,
    make_tiny_plan,
    make_tiny_recipe,
    train_on_cpu,
    write_phantoms,
)
from trainer.cases import IGNORE, encode_labels, prepare_cases, sample_segment_voxels
from trainer.errors import RecipeError
from trainer.losses import dice_pooled, supervised_loss, weighted_mean
from trainer.patches import BatchComposition, PatchSampler, PatchSource, load_batches
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses

TWO = ExclusiveClasses(2)


def random_logits(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, 3, 6, 6, 6, generator=generator)
    return logits, torch.randint(0, 3, (count, 6, 6, 6), generator=generator)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_weights_of_zero_and_one_are_a_loss_over_the_voxels_that_count() -> None:
    logits, labels = random_logits(2)
    weights = torch.zeros(2, 6, 6, 6)
    weights[:, :4] = 1
    cut = supervised_loss(logits[:, :, :4], labels[:, :4], TWO)
    torch.testing.assert_close(supervised_loss(logits, labels, TWO, weights), cut)
    torch.testing.assert_close(
        supervised_loss(logits, labels, TWO, torch.ones_like(weights)), supervised_loss(logits, labels, TWO)
    )


def test_a_weight_of_two_is_a_voxel_that_is_there_twice() -> None:
    logits, labels = random_logits(2)
    weights = torch.stack([torch.full((6, 6, 6), 2.0), torch.ones(6, 6, 6)])
    twice = supervised_loss(logits[[0, 0, 1]], labels[[0, 0, 1]], TWO)
    torch.testing.assert_close(supervised_loss(logits, labels, TWO, weights), twice)


def test_where_no_voxel_counts_the_loss_and_its_gradient_are_finite() -> None:
    logits, labels = random_logits(1)
    logits.requires_grad_()
    loss = supervised_loss(logits, labels, TWO, torch.zeros(1, 6, 6, 6))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None and bool((logits.grad == 0).all())
    assert float(weighted_mean(torch.ones(3), torch.zeros(3))) == 0.0
    p = torch.softmax(logits.detach(), dim=1)
    assert float(dice_pooled(p, TWO.encode(labels), torch.zeros(1, 6, 6, 6))) == 0.0


@pytest.mark.parametrize("method", [name for name in ALL_METHODS if name not in ("comparative", "contrastive")])
def test_labels_of_weight_zero_are_of_no_consequence_to_any_method(method: str) -> None:
    switches: dict[str, Any] = {"partner": PARTNER_NETWORK, "mistake_weight": 0.5} if method == "dual" else {}
    stages = StageSequence(build_method(make_recipe_for(method, {"updates": 8}, **switches)))
    torch.manual_seed(0)
    networks = stages.build()
    for step in (0, stages.steps - 1):
        step_plan = stages.step_plan(step)
        stages.prepare(networks, step_plan, step)
        batch = make_batch(step_plan.composition.labelled, step_plan.composition.unlabelled, step=step)
        batch = replace(batch, guides=dict.fromkeys(("cfr", "atlas", "committee"), batch.labels))
        weights = torch.ones(batch.labels.shape)
        weights[:, :3] = 0
        other = batch.labels.clone()
        other[: batch.labelled, :3] = 2 - other[: batch.labelled, :3]
        seen = batch.labels.clone()
        seen[: batch.labelled, 5:] = 2 - seen[: batch.labelled, 5:]
        losses = []
        for labels in (batch.labels, other, seen):
            torch.manual_seed(1)
            total = stages.loss(networks, replace(batch, labels=labels, weights=weights), step_plan)["total"]
            losses.append(float(total.detach()))
        assert losses[0] == losses[1], "labels that do not count"
        assert losses[0] != losses[2], "labels that do"


# --- from the files to the batch -------------------------------------------------------------------------------------


@pytest.fixture
def partly(tmp_path: Path) -> Dataset:
    """Phantoms of whose scans the right-most quarter was not outlined, with nnU-Net's label `ignore`."""
    folder = tmp_path / "data"
    dataset = write_phantoms(folder)
    document = json.loads((folder / "dataset.json").read_text())
    highest = max(int(key) for key in document["labels"])
    document["labels"][str(highest + 4)] = "ignore"
    (folder / "dataset.json").write_text(json.dumps(document))
    for case in dataset.cases.values():
        if case.label is not None:
            image = nib.load(case.label)
            array = np.asanyarray(image.dataobj).copy()
            array[-4:] = highest + 4
            nib.save(nib.Nifti1Image(array, image.affine, image.header), case.label)
    return load_dataset(folder)


def test_the_label_ignore_is_read_and_is_no_segment(partly: Dataset) -> None:
    assert partly.ignore == max(partly.label_values) + 4
    assert partly.ignore not in partly.label_values and partly.ignore in partly.known_values
    assert all(segment.name != "ignore" for segment in partly.segments)
    assert not [f for f in check_dataset(partly) if f.kind == "labels"]


@pytest.mark.parametrize("labels", [{"1": "a", "300": "ignore"}, {"a": 1, "ignore": 0}, {"a": 1, "Ignore": 1}])
def test_an_ignore_label_that_makes_no_sense_is_refused(tmp_path: Path, labels: dict[str, Any]) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DatasetError, match="'ignore' must be one value from 1 to 255 that no other label has"):
        load_dataset(tmp_path)


def test_unknown_voxels_have_weight_zero_and_no_patch_is_placed_on_them(partly: Dataset, tmp_path: Path) -> None:
    recipe = make_tiny_recipe("supervised", {"patch": [16, 16, 12], "augmentation": {"affine": 0.0}})
    plan = make_tiny_plan(partly, recipe)
    cases = prepare_cases(partly, plan.split.labelled, plan.unlabelled, plan.segments, plan.preprocessing, tmp_path)
    case = cases[plan.split.labelled[0]]
    assert case.has_ignored_voxels and bool((case.labels[12:] == IGNORE).all())
    assert all(bool((places[:, 0] < 12).all()) for places in case.segment_voxels)
    draws = PatchSampler(recipe, cases, plan.split.labelled, plan.unlabelled)
    requests = [draws.requests(0, BatchComposition(2, 2), BatchComposition(0, 0))]
    batch = next(load_batches(PatchSource(recipe, cases, 2, "edge"), requests, 0, 0, False))
    assert batch.weights is not None
    assert bool((batch.weights[:2, 12:] == 0).all()) and bool((batch.weights[:2, :12] == 1).all())
    assert bool((batch.labels[:2, 12:] == 0).all())
    assert bool((batch.weights[2:] == 1).all())


def test_a_scan_may_count_less(tmp_path: Path) -> None:
    dataset = write_phantoms(tmp_path / "data")
    plan = make_tiny_plan(dataset, make_tiny_recipe("supervised"))
    first, second = plan.split.labelled[:2]
    recipe = make_tiny_recipe("supervised", {"scan_weights": {first: 0.25}})
    cases = prepare_cases(dataset, plan.split.labelled, (), plan.segments, plan.preprocessing, tmp_path / "cache")
    draws = PatchSampler(recipe, cases, plan.split.labelled, ())
    requests = [draws.requests(0, BatchComposition(2, 0), BatchComposition(0, 0))]
    batch = next(load_batches(PatchSource(recipe, cases, 2, "edge"), requests, 0, 0, False))
    assert batch.weights is not None
    found = {case: float(w.mean()) for case, w in zip(batch.cases, batch.weights, strict=True)}
    assert found == {first: 0.25, second: 1.0}


def test_a_run_learns_from_partial_outlines_and_resumes_on_its_cache(partly: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe_for("mean_teacher", {"patch": [16, 16, 12], "updates": 3})
    train_on_cpu(partly, recipe, tmp_path / "run", cache=tmp_path / "cache")
    train_on_cpu(partly, recipe, tmp_path / "again", cache=tmp_path / "cache")
    one, other = load_run_weights(tmp_path / "run"), load_run_weights(tmp_path / "again")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_eight_regions_leave_no_code_for_unknown_voxels() -> None:
    regions = tuple(Segment(name=f"r{k}", label=k, values=(k, k + 1)) for k in range(1, 9))
    with pytest.raises(RecipeError, match="at most 7 regions, not 8"):
        encode_labels(np.zeros((2, 2, 2), np.int32), regions, 20)
    seven = regions[:7]
    encoded = encode_labels(np.full((2, 2, 2), 20), seven, 20)
    assert bool((encoded == IGNORE).all())
    assert sample_segment_voxels(encoded, seven) == ()


def test_voxels_that_nobody_outlined_are_left_out_of_an_evaluation(partly: Dataset) -> None:
    case = next(case for case in partly.cases.values() if case.label is not None)
    image = nib.load(case.label)
    reference = np.asanyarray(image.dataobj).astype(np.int32)

    def everything_above(channels: Any) -> Segmentation:
        found = np.where(reference == partly.ignore, partly.segments[0].label, reference).astype(np.uint8)
        return Segmentation(partly.segments, found, next(iter(channels.values())).affine)

    figures = evaluate(everything_above, partly, [case.id])
    scores = [row.score.dice for row in figures.rows if not np.isnan(row.score.dice)]
    assert scores and all(dice == 1.0 for dice in scores)
