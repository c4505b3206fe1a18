"""Networks for images alone: M&N's 2D network and CFR's SAM, trained, exported as modules on volumes, and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SegformerForSemanticSegmentation
from typer.testing import CliRunner

from cli.evaluate import app
from exporter.export import export
from semiseg.bundle.bundle import open_bundle
from semiseg.dataset import Dataset
from tests.trainer.factories import (
    SAM_CONFIG,
    SEGFORMER_CONFIG,
    build_method,
    load_run_weights,
    make_batch,
    make_recipe_for,
    make_tiny_recipe,
    train_on_cpu,
    write_phantoms,
)
from trainer.engine import load_trained_network, network_config_from_manifest
from trainer.errors import RecipeError
from trainer.methods.cfr_ft import CFRFT
from trainer.methods.mn import MN
from trainer.methods.mn_2d import MN2D
from trainer.networks.mosaic_segmenter import MosaicSegmenter
from trainer.networks.slicewise import SlicewiseNetwork
from trainer.patches import BatchComposition
from trainer.recipe import Recipe
from trainer.sam import SamSettings, build_sam
from trainer.slices import to_slices
from trainer.teachers import TeacherConfig, build_teacher

PATCH = {"patch": [16, 16, 8], "updates": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


def two_d(teacher: dict[str, Any], changes: dict[str, Any] | None = None) -> Recipe:
    return make_tiny_recipe("mn_2d", {"batch": 4, **PATCH, **(changes or {})}, teacher=teacher)


SCRATCH = {"finetune": "whole", "config": SEGFORMER_CONFIG}


# --- the 2D network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 2])
def test_the_2d_network_learns_the_labelled_loss_that_it_has_in_stage_one_of_mn(axis: int) -> None:
    method = build_method(two_d(SCRATCH), axis=axis)
    assert isinstance(method, MN2D)
    torch.manual_seed(0)
    networks = method.build()
    batch = make_batch(4, 0, side=16)
    sliced = networks["student"].eval()  # without dropout
    assert isinstance(sliced, SlicewiseNetwork)
    logits = sliced.network(to_slices(batch.images, axis))
    labels = to_slices(batch.labels[:, None], axis)[:, 0]
    crossed = torch.nn.functional.cross_entropy(logits, labels) / 3  # over the channels, as released
    p, y = torch.softmax(logits, 1), torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    dice = 1 - (2 * (p * y).sum((0, 2, 3)) / ((p * p).sum((0, 2, 3)) + (y * y).sum((0, 2, 3)))).mean()
    step_plan = method.step_plan(0)
    assert step_plan.composition == BatchComposition(4, 0)
    assert step_plan.rates == {"student": 1e-3}
    torch.testing.assert_close(method.loss(networks, batch, step_plan)["total"], crossed + dice)


def test_it_answers_for_each_slice_by_itself() -> None:
    method = build_method(two_d(SCRATCH))
    assert isinstance(method, MN)
    network = method.build()["student"].eval()
    volumes = torch.randn(2, 1, 16, 12, 5)
    whole = network(volumes)
    for k in range(5):
        torch.testing.assert_close(network(volumes[..., k : k + 1])[..., 0], whole[..., k], rtol=0, atol=1e-5)


@pytest.mark.parametrize("finetune", [pytest.param("whole", marks=pytest.mark.long), "lora"])
def test_a_run_of_it_is_rebuilt_evaluated_and_exported(dataset: Dataset, tmp_path: Path, finetune: str) -> None:
    train_on_cpu(dataset, two_d({**SCRATCH, "finetune": finetune}), tmp_path / "run")
    manifest, network = load_trained_network(tmp_path / "run")
    section = network_config_from_manifest(manifest)
    assert (section.kind, manifest.provenance.method) == ("sliced", "mn_2d")
    assert section.axis == manifest.preprocessing.slice_axis  # type: ignore[union-attr]
    assert manifest.provenance.parameters == sum(p.numel() for p in network.parameters())
    done = CliRunner().invoke(app, [str(tmp_path / "run"), "--data", str(dataset.folder)])
    assert done.exit_code == 0, done.output
    exported = export(tmp_path / "run", tmp_path / "bundle")
    assert exported.bundle.manifest.variants[0].precision == "fp32", "the graph is proved against the network"
    assert open_bundle(tmp_path / "bundle").manifest.provenance.student["kind"] == "sliced"


def test_a_run_that_began_with_weights_needs_them_no_more(dataset: Dataset, tmp_path: Path) -> None:
    other = {**SEGFORMER_CONFIG, "depths": [2, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
    made = build_teacher(TeacherConfig.model_validate({"finetune": "whole", "config": other}), 1, 3).network
    made.decode_head.classifier = torch.nn.Conv2d(other["decoder_hidden_size"], 2, 1)  # type: ignore[union-attr]
    assert isinstance(made, SegformerForSemanticSegmentation)
    made.save_pretrained(tmp_path / "weights")
    teacher = {"finetune": "lora", "weights": {"folder": str(tmp_path / "weights"), "licence": "mit"}}
    train_on_cpu(dataset, two_d(teacher), tmp_path / "run", cache=tmp_path / "cache")
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    manifest, network = load_trained_network(tmp_path / "run")
    assert [w.licence for w in manifest.provenance.pretrained] == ["mit"]
    assert network.network.network.config.depths == [2, 1, 1, 1]
    found = network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in load_run_weights(tmp_path / "run").items())


def test_what_only_a_3d_student_has_is_refused() -> None:
    with pytest.raises(RecipeError, match="deep_supervision: mn_2d trains a 2D network"):
        build_method(two_d(SCRATCH, {"deep_supervision": 1.0}))
    with pytest.raises(RecipeError, match="init_from: mn_2d starts from"):
        build_method(two_d(SCRATCH, {"init_from": "run"}))
    for method in ("mn_2d", "cfr_ft"):
        recipe = make_recipe_for(method, PATCH)
        recipe = recipe.model_copy(update={"methods": {**recipe.methods, method: {"chunk": 1}}})
        with pytest.raises(RecipeError, match=rf"methods\.{method}: chunk"):
            build_method(recipe)
    weights = {"kind": "sliced", "network": {"weights": {"folder": "x", "licence": "mit"}}}
    with pytest.raises(RecipeError, match="the method `mn_2d` begins with some"):
        build_method(make_tiny_recipe("supervised", {**PATCH, "student": weights})).build()


def test_any_method_trains_a_2d_network_as_its_student(dataset: Dataset, tmp_path: Path) -> None:
    student = {"kind": "sliced", "network": SCRATCH}
    train_on_cpu(dataset, make_recipe_for("mean_teacher", {**PATCH, "student": student}), tmp_path / "run")
    assert isinstance(load_trained_network(tmp_path / "run")[1], SlicewiseNetwork)


# --- SAM --------------------------------------------------------------------------------------------------------------


def test_sam_alone_learns_the_loss_that_it_has_as_a_first_stage() -> None:
    alone, first = (
        build_method(make_recipe_for(name, {"patch": [16, 16, 8]}, **({"bend": 0.0}))) for name in ("cfr_ft", "cfr")
    )
    assert isinstance(alone, CFRFT)
    torch.manual_seed(0)
    networks = alone.build()
    sam = networks["student"]
    assert isinstance(sam, MosaicSegmenter)
    batch = make_batch(4, 0, side=16)
    batch = batch.__class__(batch.images[..., :8], batch.labels[..., :8], 4, batch.cases, 0)
    theirs = first.stages()[0].loss({"sam": sam.sam}, batch, first.step_plan(0))["total"]
    torch.testing.assert_close(alone.loss(networks, batch, alone.step_plan(0))["total"], theirs)


@pytest.mark.parametrize(("grid", "given"), [(None, "concatenate"), (2, "concatenate"), (None, "upsample")])
def test_a_run_of_sam_is_rebuilt_and_evaluated(dataset: Dataset, tmp_path: Path, grid: int | None, given: str) -> None:
    recipe = make_recipe_for("cfr_ft", {**PATCH, "batch": 2}, grid=grid, input=given)
    train_on_cpu(dataset, recipe, tmp_path / "run")
    manifest, network = load_trained_network(tmp_path / "run")
    assert isinstance(network, MosaicSegmenter)
    assert network.canvas == build_method(recipe).canvas  # type: ignore[attr-defined]
    assert network(torch.randn(1, 1, 16, 16, 8)).shape == (1, manifest.outputs, 16, 16, 8)
    done = CliRunner().invoke(app, [str(tmp_path / "run"), "--data", str(dataset.folder)])
    assert done.exit_code == 0, done.output


def test_a_run_of_sam_that_began_with_weights_needs_them_no_more(dataset: Dataset, tmp_path: Path) -> None:
    vision = {**SAM_CONFIG["vision"], "num_hidden_layers": 3}
    whole = SamSettings.model_validate({**SAM_CONFIG, "vision": vision, "finetune": "whole"})
    build_sam(whole, 1, 3).network.save_pretrained(tmp_path / "weights")
    sam = {"weights": {"folder": str(tmp_path / "weights"), "licence": "apache-2.0"}, "side": 128}
    train_on_cpu(dataset, make_recipe_for("cfr_ft", {**PATCH, "batch": 2}, sam=sam), tmp_path / "run")
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    manifest, network = load_trained_network(tmp_path / "run")
    assert [w.licence for w in manifest.provenance.pretrained] == ["apache-2.0"]
    found = network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in load_run_weights(tmp_path / "run").items())


@pytest.mark.long
def test_sam_is_exported_too(dataset: Dataset, tmp_path: Path) -> None:
    train_on_cpu(
        dataset, make_recipe_for("cfr_ft", {**PATCH, "batch": 2, "overlap": [0.75, 0.5, 0.0]}), tmp_path / "run"
    )
    exported = export(tmp_path / "run", tmp_path / "bundle")
    assert exported.bundle.manifest.variants[0].precision == "fp32", "the graph is proved against the network"
    assert exported.bundle.manifest.provenance.student["kind"] == "slice_mosaic"
    assert load_trained_network(tmp_path / "run")[0].overlap == (0.75, 0.5, 0.0)
    assert exported.bundle.manifest.overlap == 0.5, "whatever a run was judged with"
