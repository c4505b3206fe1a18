"""The training loop: what a run depends on, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from semiseg.bundle.bundle import read_manifest
from semiseg.dataset import Dataset, Split, load_dataset
from semiseg.errors import SemisegError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.volumes.nifti import read_labels, write_nifti
from tests.trainer.tiny import (
    BATCH_NORM,
    SHAPE,
    SPACING,
    batch_of,
    method_of,
    phantoms,
    plan_of,
    recipe_of,
    same_weights,
    trained,
    weights_of,
)
from trainer.checkpoints import RunFolder, State, load_state, load_weights, read_log, save_state, save_weights
from trainer.engine import open_run, trained_network
from trainer.errors import RecipeError, RunError, TrainingError
from trainer.log import RunLog
from trainer.loop import train
from trainer.plan import make_plan

METHODS = ("supervised", "mean_teacher", "mn")
AFFINE = make_phantom(0, SHAPE, SPACING).image.affine


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset that the test may spoil."""
    return load_dataset(Path(shutil.copytree(dataset.folder, tmp_path / "data")))


def split_of(dataset: Dataset, document: Mapping[str, Any]) -> None:
    (dataset.folder / "split.json").write_text(json.dumps(document))


def split_document(dataset: Dataset) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((dataset.folder / "split.json").read_text())
    return document


# --- what the weights depend on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [("mn", "other labels"), ("mn", "no NIfTI"), ("mean_teacher", "no NIfTI"), ("supervised", "no NIfTI")],
)
def test_labels_of_unlabelled_scans_are_never_opened(own: Dataset, tmp_path: Path, method: str, kind: str) -> None:
    recipe = recipe_of(method, {"foreground": 1.0})
    trained(own, recipe, tmp_path / "before")
    unlabelled = split_document(own)["unlabelled"]["2"]
    assert len(unlabelled) == 4
    for case_id in unlabelled:
        label = own.case(case_id).label
        assert label is not None
        if kind == "no NIfTI":
            label.write_bytes(b"this is no NIfTI file")
        else:
            write_nifti(label, 3 - read_labels(label).array.astype(np.uint8), AFFINE)
    trained(own, recipe, tmp_path / "after")
    assert same_weights(weights_of(tmp_path / "before"), weights_of(tmp_path / "after"))


def test_labels_of_labelled_scans_do_reach_the_weights(own: Dataset, tmp_path: Path) -> None:
    trained(own, recipe_of("supervised"), tmp_path / "before")
    label = own.case(split_document(own)["labelled"]["2"][0]).label
    assert label is not None
    write_nifti(label, np.ones(SHAPE, np.uint8), AFFINE)
    trained(own, recipe_of("supervised"), tmp_path / "after")
    assert not same_weights(weights_of(tmp_path / "before"), weights_of(tmp_path / "after"))


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_recipe_end_with_the_same_weights(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = recipe_of(method, {"augmentation": {"rotate": 20, "noise": 0.1}})
    for name in ("a", "b"):
        trained(dataset, recipe, tmp_path / name, cache=tmp_path / "cache")
        torch.rand(3)  # what happened before in the process does not matter
    assert same_weights(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    trained(dataset, recipe.model_copy(update={"seed": 1}), tmp_path / "c")
    assert not same_weights(weights_of(tmp_path / "a"), weights_of(tmp_path / "c"))


def test_worker_processes_do_not_change_the_weights(dataset: Dataset, tmp_path: Path) -> None:
    for workers in (0, 2):
        trained(dataset, recipe_of("mn", {"workers": workers}), tmp_path / str(workers))
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "2"))


def test_one_process_may_train_in_one_precision_after_another(dataset: Dataset, tmp_path: Path) -> None:
    optimiser = {"rate": 0.01, "clip_norm": 1.0}
    kept = {}
    for precision in ("bf16", "fp16", "fp32"):
        recipe = recipe_of("mn", {"precision": precision, "optimiser": optimiser, "updates": 4})
        trained(dataset, recipe, tmp_path / precision)
        kept[precision] = weights_of(tmp_path / precision)
        assert all(v.dtype == torch.float32 and bool(torch.isfinite(v).all()) for v in kept[precision].values())
    assert not same_weights(kept["bf16"], kept["fp32"])
    for name, exact in kept["fp32"].items():
        torch.testing.assert_close(kept["fp16"][name], exact, atol=0.05, rtol=0.05)


# --- gradient accumulation ----------------------------------------------------------------------------------------


def gradients(parts: int, **switches: Any) -> dict[str, torch.Tensor]:
    """The student's gradients of one M&N batch taken in ``parts``, as the loop adds them up."""
    method = method_of(recipe_of("mn", {"batch": 4}, lrg="fixed", fixed_unlabelled=2, **switches))
    torch.manual_seed(0)
    networks = method.build()
    turn = next(t for t in map(method.turn, range(method.steps)) if t.stage == "cotrain-student")
    for network in networks.values():
        network.eval()  # what depends on the composition of a batch (batch norm, dropout) aside
    batch = batch_of(2, 2)
    for part in batch.parts(parts):
        (method.loss(networks, part, turn)["total"] * (len(part) / len(batch))).backward()
    return {n: p.grad for n, p in networks["student"].named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_loss_that_is_a_mean_has_the_same_gradient_in_parts(parts: int) -> None:
    whole, split = gradients(1, weight_dice=0.0), gradients(parts, weight_dice=0.0)
    assert whole.keys() == split.keys()
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-6)


def test_dice_is_pooled_over_each_part_so_its_gradient_differs() -> None:
    whole, split = gradients(1, weight_kl=0.0), gradients(2, weight_kl=0.0)
    assert max(float((whole[n] - split[n]).abs().max()) for n in whole) > 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [2, 3])
def test_any_method_trains_in_parts(dataset: Dataset, tmp_path: Path, method: str, accumulate: int) -> None:
    switches = {"labelled": 1} if method == "mean_teacher" else {}
    trained(dataset, recipe_of(method, {"batch": 3, "accumulate": accumulate}, **switches), tmp_path / "run")
    assert all(bool(torch.isfinite(v).all()) for v in weights_of(tmp_path / "run").values())


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_scans(dataset: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of("supervised", {"optimiser": {"rate": 1e30}, "updates": 20})
    with pytest.raises(TrainingError, match=r"not finite at step \d+, on patches of phantom_\d+.*semiseg data check"):
        trained(dataset, recipe, tmp_path / "run")


def test_a_scan_with_nan_is_refused_by_name(own: Dataset, tmp_path: Path) -> None:
    case = split_document(own)["unlabelled"]["2"][0]
    write_nifti(own.case(case).image, np.full(SHAPE, np.nan, np.float32), AFFINE)
    with pytest.raises(SemisegError, match=case):
        trained(own, recipe_of("supervised"), tmp_path / "run")


def test_a_labelled_scan_without_a_label_file_is_refused_by_name(own: Dataset, tmp_path: Path) -> None:
    case = split_document(own)["labelled"]["2"][0]
    label = own.case(case).label
    assert label is not None
    label.unlink()
    with pytest.raises(SemisegError, match=rf"{case}.*no label file"):
        trained(own, recipe_of("supervised"), tmp_path / "run")
    cases = {**own.cases, case: type(own.case(case))(case, own.case(case).image, None)}
    bare = Dataset(own.folder, own.name, own.channels, own.segments, cases)
    others = tuple(c for c in own.cases if c != case)
    plan = make_plan(bare, Split((case,), others), recipe_of("supervised"))
    with pytest.raises(RecipeError, match=rf"{case}: it is named as labelled and has no label file"):
        train(plan, tmp_path / "bare", device="cpu")


def test_a_label_on_another_grid_is_refused_by_name(own: Dataset, tmp_path: Path) -> None:
    case = split_document(own)["labelled"]["2"][1]
    label = own.case(case).label
    assert label is not None
    write_nifti(label, np.ones((4, 4, 4), np.uint8), AFFINE)
    with pytest.raises(RecipeError, match=rf"{case}.*does not lie on the grid"):
        trained(own, recipe_of("supervised"), tmp_path / "run")


@pytest.mark.parametrize(("device", "complaint"), [("tpu", "no device 'tpu'"), ("cuda", "no GPU that torch can use")])
def test_a_device_that_is_not_there_is_refused(dataset: Dataset, tmp_path: Path, device: str, complaint: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SemisegError, match=complaint):
        train(plan_of(dataset, recipe_of("supervised")), tmp_path / "run", device=device)


# --- unusual scans ------------------------------------------------------------------------------------------------


def test_constant_images_train(own: Dataset, tmp_path: Path) -> None:
    for case in own.cases.values():
        write_nifti(case.image, np.full(SHAPE, 7, np.int16), AFFINE)
    trained(own, recipe_of("mn", {"augmentation": {"gamma_probability": 1.0}}), tmp_path / "run")
    assert all(bool(torch.isfinite(v).all()) for v in weights_of(tmp_path / "run").values())


@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_scans_smaller_than_the_patch_train(dataset: Dataset, tmp_path: Path, padding: str) -> None:
    changes = {"patch": [24, 20, 16], "preparation": {"padding": padding}}
    manifest = trained(dataset, recipe_of("mn", changes), tmp_path / "run")
    assert manifest.patch == (24, 20, 16)


@pytest.mark.parametrize("method", METHODS)
def test_one_labelled_scan_is_enough(dataset: Dataset, tmp_path: Path, method: str) -> None:
    recipe = recipe_of(method, {"batch": 4})
    manifest = train(plan_of(dataset, recipe, labelled=1), tmp_path / "run", device="cpu")
    assert (manifest.provenance.labelled, manifest.provenance.unlabelled) == (1, 5)


@pytest.mark.parametrize("method", METHODS)
def test_without_unlabelled_scans_every_method_trains_on_the_labels(
    dataset: Dataset, tmp_path: Path, method: str
) -> None:
    plan = make_plan(dataset, Split(tuple(dataset.cases)[:2]), recipe_of(method))
    assert train(plan, tmp_path / "run", device="cpu").provenance.unlabelled == 0


def test_scans_without_any_foreground_train(own: Dataset, tmp_path: Path) -> None:
    for case in own.cases.values():
        assert case.label is not None
        write_nifti(case.label, np.zeros(SHAPE, np.uint8), AFFINE)
    trained(own, recipe_of("mn", {"foreground": 1.0}), tmp_path / "run")


# --- the run folder -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    trained(dataset, recipe_of("mn", {"updates": 24}), run)
    return run


def test_a_finished_run_opens_as_a_manifest_and_a_network(finished: Path) -> None:
    manifest, network = trained_network(finished)
    assert manifest == read_manifest(finished / "run.json")
    assert manifest.validation is None
    assert manifest.provenance.method == "mn"
    assert manifest.provenance.parameters == sum(p.numel() for p in network.parameters())
    assert not network.training
    assert same_weights(dict(network.state_dict()), weights_of(finished))
    _, engine = open_run(finished, "cpu")
    window = np.zeros((1, 1, *manifest.window), np.float32)
    assert engine.logits(engine.run(window)).shape == (1, manifest.outputs, *manifest.window)


def test_only_the_students_tensors_are_kept(finished: Path) -> None:
    state = load_state(finished / "checkpoint.pt", torch.device("cpu"))
    assert same_weights(weights_of(finished), state.networks["student"])
    assert set(state.networks) == {"student", "teacher"}
    assert not any("lora" in name or "segformer" in name for name in weights_of(finished))


def test_curve_and_preview_are_pictures_of_something(finished: Path) -> None:
    for name in ("curve.png", "preview.png"):
        with Image.open(finished / name) as picture:
            picture.load()
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 100
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, f"{name} is blank"
        assert pixels.std() > 5


def test_the_log_tells_every_tenth_step_its_rates_and_its_terms(finished: Path) -> None:
    rows = read_log(finished / "log.jsonl")
    steps = 6 + 2 * 18
    assert [row["step"] for row in rows] == [*range(0, steps, 10), steps - 1]
    for row in rows:
        learners = {"student", "teacher"} if row["stage"] == "labelled" else {row["stage"].removeprefix("cotrain-")}
        assert {f"rate/{name}" for name in learners} == {key for key in row if key.startswith("rate/")}
        assert learners == {key for key in row if key in ("student", "teacher")}
        assert row["total"] == pytest.approx(sum(row[name] for name in learners), rel=1e-5)
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_what_is_reported_is_every_step(dataset: Dataset, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    trained(dataset, recipe_of("mn"), tmp_path / "run", report=lambda step, steps, _: told.append((step, steps)))
    assert told == [(k, 14) for k in range(1, 15)]


def test_resuming_a_finished_run_changes_nothing(dataset: Dataset, finished: Path) -> None:
    before, log = weights_of(finished), (finished / "log.jsonl").read_text()
    trained(dataset, recipe_of("mn", {"updates": 24}), finished, resume=True)
    assert same_weights(before, weights_of(finished))
    assert (finished / "log.jsonl").read_text() == log


def test_a_run_folder_is_not_overwritten(dataset: Dataset, finished: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="already holds a run; continue it with --resume"):
        trained(dataset, recipe_of("mn", {"updates": 24}), finished)
    with pytest.raises(RunError, match="was started with another recipe"):
        trained(dataset, recipe_of("mn", {"updates": 26}), finished, resume=True)
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


def test_a_run_is_resumed_with_its_own_split_only(dataset: Dataset, finished: Path) -> None:
    plan = plan_of(dataset, recipe_of("mn", {"updates": 24}), labelled=1)
    with pytest.raises(RunError, match="was started with another split"):
        train(plan, finished, resume=True, device="cpu")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_not_taken(dataset: Dataset, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(RunError, match="exists and holds no run"):
        trained(dataset, recipe_of("supervised"), tmp_path / "letters", resume=resume)
    with pytest.raises(RunError, match="cannot be made"):
        trained(dataset, recipe_of("supervised"), tmp_path / "letters" / "dear.txt", resume=resume)


def test_a_run_refused_before_its_first_step_may_be_started_again_with_a_mended_recipe(
    dataset: Dataset, tmp_path: Path
) -> None:
    wrong = {"finetune": "whole", "config": {"num_attention_heads": 1}}
    with pytest.raises(RecipeError, match="does not make a SegFormer"):
        trained(dataset, recipe_of("mn", teacher=wrong), tmp_path / "run")
    recipe = recipe_of("mn")
    trained(dataset, recipe, tmp_path / "run")
    told = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert told["recipe"] == recipe.model_dump(mode="json")


def test_what_a_kill_left_half_written_is_removed_on_resume(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = recipe_of("supervised")
    trained(dataset, recipe, run)
    (run / ".checkpoint.pt.x1y2.part").write_bytes(b"half")
    trained(dataset, recipe, run, resume=True)
    assert not list(run.glob(".*.part"))


@pytest.mark.parametrize("damage", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_named(dataset: Dataset, finished: Path, tmp_path: Path, damage: bytes) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "checkpoint.pt").write_bytes(damage or (finished / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read"):
        trained(dataset, recipe_of("mn", {"updates": 24}), run, resume=True)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"step": Harm()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path / "checkpoint.pt", torch.device("cpu"))
    assert not (tmp_path / "harm").exists()


def test_a_state_returns_as_it_was_saved(tmp_path: Path) -> None:
    state = State(
        3, {"student": {"w": torch.randn(2)}}, {}, None, {"scan": [torch.ones((2, 3), dtype=torch.int32)]}, 0.5
    )
    save_state(tmp_path / "c.pt", state)
    again = load_state(tmp_path / "c.pt", torch.device("cpu"))
    assert (again.step, again.best, again.scaler) == (3, 0.5, None)
    assert torch.equal(again.networks["student"]["w"], state.networks["student"]["w"])
    assert torch.equal(again.foreground["scan"][0], state.foreground["scan"][0])


def test_weights_of_another_network_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="do not fit the network of this run"):
        load_weights(finished / "student.safetensors", torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match="the run has not finished; continue it with --resume"):
        load_weights(tmp_path / "student.safetensors", torch.nn.Linear(2, 2))
    save_weights(tmp_path / "w.safetensors", torch.nn.Linear(2, 2))
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-3])
    with pytest.raises(RunError, match="do not fit"):
        load_weights(tmp_path / "w.safetensors", torch.nn.Linear(2, 2))


def test_a_log_opened_at_a_step_forgets_what_came_after_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = RunLog(run, 0)
    for step in range(4):
        log.write(step, {"total": step / 2})
    log.close()
    run.log.write_text(run.log.read_text() + '{"step": 4, "tot')  # cut off by a kill
    log = RunLog(run, 2)
    log.write(2, {"total": 9.0})
    log.close()
    assert read_log(run.log) == [{"step": 0, "total": 0.0}, {"step": 1, "total": 0.5}, {"step": 2, "total": 9.0}]


# --- validation ---------------------------------------------------------------------------------------------------


def validated(dataset: Dataset, run: Path, method: str = "supervised", **changes: Any) -> Any:
    """A run on a split with one validation scan, and the validations of its log by step."""
    document = split_document(dataset)
    labelled = document["labelled"]["2"]
    split_of(dataset, {**document, "labelled": {"2": labelled[:1]}, "validation": labelled[1:], "unlabelled": None})
    recipe = recipe_of(method, {"updates": 24, "validate_every": 4, **changes})
    manifest = trained(load_dataset(dataset.folder), recipe, run)
    rows = [row for row in read_log(run / "log.jsonl") if "validation_dice" in row]
    return manifest, {row["step"]: row["validation_dice"] for row in rows}


@pytest.mark.parametrize("method", METHODS)
def test_with_validation_scans_the_best_iterate_is_kept(own: Dataset, tmp_path: Path, method: str) -> None:
    manifest, dice = validated(own, tmp_path / "run", method, optimiser={"rate": 0.03})
    assert manifest.validation is not None
    assert manifest.validation.scans == manifest.provenance.validation == 1
    assert len(dice) == 6
    kept = sum(manifest.validation.dice.values()) / len(manifest.validation.dice)
    assert kept == pytest.approx(max(dice.values()), abs=1e-12)
    assert same_weights(weights_of(tmp_path / "run"), load_best(tmp_path / "run"))


def load_best(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "best.safetensors")


def test_a_best_iterate_that_is_not_the_last_one_is_kept(own: Dataset, tmp_path: Path) -> None:
    # A rate so high that the network gets worse again; the student's own last weights are not what is kept.
    _, dice = validated(own, tmp_path / "run", optimiser={"rate": 0.3}, schedule={"kind": "constant"}, validate_every=2)
    assert max(dice.values()) > dice[23], "this run has to get worse at its end for the test to say something"
    last = load_state(tmp_path / "run" / "checkpoint.pt", torch.device("cpu")).networks["student"]
    assert not same_weights(last, weights_of(tmp_path / "run"))


def test_without_validation_scans_the_last_iterate_is_kept_and_nothing_is_claimed(
    dataset: Dataset, finished: Path
) -> None:
    assert read_manifest(finished / "run.json").validation is None
    assert not (finished / "best.safetensors").exists()
    assert not [row for row in read_log(finished / "log.jsonl") if "validation_dice" in row]


def test_validation_scans_are_in_no_training_pool(own: Dataset, tmp_path: Path) -> None:
    manifest, _ = validated(own, tmp_path / "run")
    assert (manifest.provenance.labelled, manifest.provenance.unlabelled) == (1, 4)
    told = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["split"]
    assert not set(told["validation"]) & {*told["labelled"], *told["unlabelled"]}


def test_a_student_with_batch_statistics_is_kept_with_them(dataset: Dataset, tmp_path: Path) -> None:
    trained(dataset, recipe_of("mean_teacher", {"student": BATCH_NORM, "batch": 4}), tmp_path / "run")
    means = [v for name, v in weights_of(tmp_path / "run").items() if name.endswith("running_mean")]
    assert means
    assert any(float(v.abs().max()) > 0 for v in means)
