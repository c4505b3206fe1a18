"""What a run leaves behind, what may go on in it, and which iterate validation keeps."""

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
from semiseg.dataset import Dataset, load_dataset
from tests.trainer.factories import (
    BATCH_NORM_NETWORK,
    load_run_weights,
    make_tiny_plan,
    make_tiny_recipe,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.checkpoints import RunFolder, TrainingState, load_state, load_weights, read_log, save_state, save_weights
from trainer.engine import load_trained_network, open_run
from trainer.errors import RecipeError, RunError
from trainer.log import RunLog
from trainer.loop import train
from trainer.validation import MAX_STATISTICS_SCANS

METHODS = ("supervised", "mean_teacher", "mn")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset that the test may spoil."""
    return load_dataset(Path(shutil.copytree(dataset.folder, tmp_path / "data")))


def split_of(dataset: Dataset, document: Mapping[str, Any]) -> None:
    (dataset.folder / "split.json").write_text(json.dumps(document))


def split_document(dataset: Dataset) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((dataset.folder / "split.json").read_text())
    return document


# --- the run folder -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train_on_cpu(dataset, make_tiny_recipe("mn", {"updates": 24}), run, pictures=True)
    return run


def test_a_finished_run_opens_as_a_manifest_and_a_network(finished: Path) -> None:
    manifest, network = load_trained_network(finished)
    assert manifest == read_manifest(finished / "run.json")
    assert manifest.validation is None
    assert manifest.provenance.method == "mn"
    assert manifest.provenance.parameters == sum(p.numel() for p in network.parameters())
    assert not network.training
    assert weights_equal(dict(network.state_dict()), load_run_weights(finished))
    _, engine = open_run(finished, "cpu")
    window = np.zeros((1, 1, *manifest.window), np.float32)
    assert engine.logits(engine.run(window)).shape == (1, manifest.outputs, *manifest.window)


def test_a_run_remembers_what_its_masks_of_the_training_scans_were_like(dataset: Dataset, finished: Path) -> None:
    manifest = read_manifest(finished / "run.json")
    assert manifest.masks is not None
    origin = manifest.provenance
    assert manifest.masks.scans == origin.labelled + origin.unlabelled <= MAX_STATISTICS_SCANS
    assert set(manifest.masks.segments) <= {segment.name for segment in manifest.segments}
    assert manifest.masks.segments, "some segment is found in some scan"
    for seen in manifest.masks.segments.values():
        assert 0 < seen.minimum[0] <= seen.maximum[0] and seen.minimum[1] >= 1 and 0 < seen.maximum[2] <= 1


def test_only_the_students_tensors_are_kept(finished: Path) -> None:
    state = load_state(finished / "checkpoint.pt", torch.device("cpu"))
    assert weights_equal(load_run_weights(finished), state.networks["student"])
    assert set(state.networks) == {"student", "teacher"}
    assert not any("lora" in name or "segformer" in name for name in load_run_weights(finished))


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
        models = {"student", "teacher"} if row["stage"] == "labelled" else {row["stage"].removeprefix("cotrain-")}
        assert {f"rate/{name}" for name in models} == {key for key in row if key.startswith("rate/")}
        assert models == {key for key in row if key in ("student", "teacher")}
        assert row["total"] == pytest.approx(sum(row[name] for name in models), rel=1e-5)
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_what_is_reported_is_every_step(dataset: Dataset, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    train_on_cpu(
        dataset, make_tiny_recipe("mn"), tmp_path / "run", report=lambda step, steps, _: told.append((step, steps))
    )
    assert told == [(k, 14) for k in range(1, 15)]


def test_resuming_a_finished_run_changes_nothing(dataset: Dataset, finished: Path) -> None:
    before, log = load_run_weights(finished), (finished / "log.jsonl").read_text()
    train_on_cpu(dataset, make_tiny_recipe("mn", {"updates": 24}), finished, resume=True)
    assert weights_equal(before, load_run_weights(finished))
    assert (finished / "log.jsonl").read_text() == log


def test_a_run_folder_is_not_overwritten(dataset: Dataset, finished: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="already contains a run; continue it with --resume"):
        train_on_cpu(dataset, make_tiny_recipe("mn", {"updates": 24}), finished)
    with pytest.raises(RunError, match="was started with another recipe"):
        train_on_cpu(dataset, make_tiny_recipe("mn", {"updates": 26}), finished, resume=True)
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


def test_a_run_is_resumed_with_its_own_split_only(dataset: Dataset, finished: Path) -> None:
    plan = make_tiny_plan(dataset, make_tiny_recipe("mn", {"updates": 24}), labelled=1)
    with pytest.raises(RunError, match="was started with another split"):
        train(plan, finished, resume=True, device="cpu")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_not_taken(dataset: Dataset, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(RunError, match="exists but is not a run folder"):
        train_on_cpu(dataset, make_tiny_recipe("supervised"), tmp_path / "letters", resume=resume)
    with pytest.raises(RunError, match="cannot be created"):
        train_on_cpu(dataset, make_tiny_recipe("supervised"), tmp_path / "letters" / "dear.txt", resume=resume)


def test_a_run_refused_before_its_first_step_may_be_started_again_with_a_mended_recipe(
    dataset: Dataset, tmp_path: Path
) -> None:
    wrong = {"finetune": "whole", "config": {"num_attention_heads": 1}}
    with pytest.raises(RecipeError, match="is not valid for SegFormer"):
        train_on_cpu(dataset, make_tiny_recipe("mn", teacher=wrong), tmp_path / "run")
    recipe = make_tiny_recipe("mn")
    train_on_cpu(dataset, recipe, tmp_path / "run")
    told = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert told["recipe"] == recipe.model_dump(mode="json")


def test_what_a_kill_left_half_written_is_removed_on_resume(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = make_tiny_recipe("supervised")
    train_on_cpu(dataset, recipe, run)
    (run / ".checkpoint.pt.x1y2.part").write_bytes(b"half")
    train_on_cpu(dataset, recipe, run, resume=True)
    assert not list(run.glob(".*.part"))


@pytest.mark.parametrize("damage", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_named(dataset: Dataset, finished: Path, tmp_path: Path, damage: bytes) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "checkpoint.pt").write_bytes(damage or (finished / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read"):
        train_on_cpu(dataset, make_tiny_recipe("mn", {"updates": 24}), run, resume=True)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"step": Harm()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path / "checkpoint.pt", torch.device("cpu"))
    assert not (tmp_path / "harm").exists()


def test_a_state_returns_as_it_was_saved(tmp_path: Path) -> None:
    state = TrainingState(
        3, {"student": {"w": torch.randn(2)}}, {}, None, {"scan": [torch.ones((2, 3), dtype=torch.int32)]}, 0.5, 1
    )
    save_state(tmp_path / "c.pt", state)
    again = load_state(tmp_path / "c.pt", torch.device("cpu"))
    assert (again.step, again.best, again.waited, again.scaler) == (3, 0.5, 1, None)
    assert torch.equal(again.networks["student"]["w"], state.networks["student"]["w"])
    assert torch.equal(again.foreground["scan"][0], state.foreground["scan"][0])


def test_weights_of_another_network_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="another network than this run's"):
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
    recipe = make_tiny_recipe(method, {"updates": 24, "validate_every": 4, **changes})
    manifest = train_on_cpu(load_dataset(dataset.folder), recipe, run)
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
    assert weights_equal(load_run_weights(tmp_path / "run"), load_best(tmp_path / "run"))


def load_best(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "best.safetensors")


def test_a_best_iterate_that_is_not_the_last_one_is_kept(own: Dataset, tmp_path: Path) -> None:
    # A rate so high that the network gets worse again; the student's own last weights are not what is kept.
    _, dice = validated(own, tmp_path / "run", optimiser={"rate": 0.3}, schedule={"kind": "constant"}, validate_every=2)
    assert max(dice.values()) > dice[23], "this run has to get worse at its end for the test to say something"
    last = load_state(tmp_path / "run" / "checkpoint.pt", torch.device("cpu")).networks["student"]
    assert not weights_equal(last, load_run_weights(tmp_path / "run"))


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
    train_on_cpu(
        dataset, make_tiny_recipe("mean_teacher", {"student": BATCH_NORM_NETWORK, "batch": 4}), tmp_path / "run"
    )
    means = [v for name, v in load_run_weights(tmp_path / "run").items() if name.endswith("running_mean")]
    assert means
    assert any(float(v.abs().max()) > 0 for v in means)


def test_a_run_of_a_version_that_knew_fewer_keys_is_resumed(tmp_path: Path) -> None:
    """Its recipe lacks keys that a later version added, each of which leaves what it computes as it was."""
    recipe = make_tiny_recipe("supervised").model_dump(mode="json")
    folder = RunFolder(tmp_path / "run")
    folder.start({"recipe": {k: v for k, v in recipe.items() if k != "ema"}, "dataset": "d"}, resume=False)
    folder.log.touch()
    folder.start({"recipe": recipe, "dataset": "d"}, resume=True)
    with pytest.raises(RunError, match="another recipe"):
        folder.start({"recipe": {**recipe, "ema": 0.9}, "dataset": "d"}, resume=True)
