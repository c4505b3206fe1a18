"""Comparative pre-training as the loop runs it: which patches, which slices, what moves, and when it ends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    clone,
    load_run_weights,
    make_batch,
    make_case,
    make_recipe_for,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.errors import RecipeError, TrainingError
from trainer.methods import make_method
from trainer.methods.comparative import Comparative, Contrastive, ConvergenceMonitor
from trainer.methods.method import SegmentationTask
from trainer.patches import Batch, BatchComposition, PatchSampler, PatchSource
from trainer.slice_similarity import SliceFeatures, comparative_loss, contrastive_loss
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses

BOTH = ("comparative", "contrastive")


def comparative(
    changes: dict[str, Any] | None = None, name: str = "comparative", unlabelled: int = 12, **switches: Any
) -> Comparative:
    switches = {"feature_updates": 4, "output_updates": 4, "partitions": 2, **switches}
    method = make_method(
        make_recipe_for(name, changes, **switches), SegmentationTask(1, ExclusiveClasses(2), 2, 4, unlabelled)
    )
    assert isinstance(method, Comparative)
    return method


def networks_of(method: Comparative) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return StageSequence(method).build()


def placed(step: int = 0, seed: int = 0) -> Batch:
    """Four patches that each hold all of their scan."""
    batch = make_batch(0, 4, seed=seed, step=step)
    where = torch.tensor([0.0, 1.0]).expand(4, 3, 2)
    return Batch(batch.images, batch.labels, 0, batch.cases, step, where)


def encoder_of(method: Comparative, network: nn.Module) -> dict[str, torch.Tensor]:
    names = method._student.encoder()
    return {k: v for k, v in network.state_dict().items() if k.startswith(tuple(f"{n}." for n in names))}


# --- which patches and slices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_pre_training_draws_pairs_of_crops_from_unlabelled_scans(name: str) -> None:
    method = comparative(name=name)
    for step in range(8):
        step_plan = method.step_plan(step)
        assert (step_plan.stage, set(step_plan.rates)) == ("features" if step < 4 else "output", {"student"})
        assert step_plan.composition == BatchComposition(0, 0, either=4, crops=2)
        assert step_plan.rates["student"] == method.recipe.optimiser.rate
        assert not step_plan.validate
    after = StageSequence(method).step_plan(8)
    assert (after.label, after.validate) == ("supervised-train", True)
    assert comparative(name=name, unlabelled=0).step_plan(0).composition == BatchComposition(0, 0, either=4, crops=2)
    assert comparative(name=name, rate=0.5).step_plan(0).rates["student"] == 0.5


def test_pre_training_cuts_all_training_scans_anywhere() -> None:
    cases = {name: make_case(name, (20, 20, 20), seed=k) for k, name in enumerate(("a", "b", "c"))}
    recipe = make_recipe_for("comparative", {"foreground": 1.0})
    draws = PatchSampler(recipe, cases, ["a", "b"], ["c"])
    requests = draws.requests(0, BatchComposition(0, 0, either=6, crops=2), BatchComposition(0, 0))
    assert sorted(r.case_id for r in requests) == ["a", "a", "b", "b", "c", "c"]
    assert all(r.voxel is None and not r.labelled for r in requests)
    assert all(r.voxel for r in draws.requests(0, BatchComposition(2, 0), BatchComposition(0, 0))), (
        "labels would be followed"
    )
    source = PatchSource(recipe, cases, 2, "edge")
    assert all(int(source[r]["labels"].sum()) == 0 for r in requests)  # type: ignore[index]


def test_no_label_is_looked_at() -> None:
    for step in (0, 5):
        method = comparative()
        networks, batch = networks_of(method), placed(step)
        other = Batch(batch.images, torch.ones_like(batch.labels), 0, batch.cases, step, batch.where)
        step_plan = method.step_plan(step)
        one, two = (float(method.loss(networks, b, step_plan)["total"].detach()) for b in (batch, other))
        assert one == two


def test_slices_of_the_body_and_of_the_patch() -> None:
    compared = torch.randn(4, 2, 8, 8, 8)
    body, patch = comparative(positions="body"), comparative(positions="patch")
    half = Batch(placed().images, placed().labels, 0, placed().cases, 0, torch.tensor([0.0, 0.5]).expand(4, 3, 2))
    assert len(body.slices(compared, placed())[0].part) == 8
    assert set(body.slices(compared, half)[0].part.tolist()) == {0}, "half of the body holds half of the parts"
    assert len(patch.slices(compared, half)[0].part) == 8
    with pytest.raises(RecipeError, match="the 4 slices of the compared features along axis 0 do not make 5 parts"):
        comparative(positions="patch", partitions=5).build()
    comparative(positions="body", partitions=5).build()


def test_slices_know_the_scan_of_their_patch() -> None:
    batch = placed()
    pairs = Batch(batch.images, batch.labels, 0, ("x", "x", "y", "y"), 0, batch.where)
    (s,) = comparative().slices(torch.randn(4, 2, 8, 8, 8), pairs)
    assert s.scan.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert s.patch.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("kind", "pairs", "triples"), [("all", 48, 576), ("same_scan", 32, 192)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_objectives_are_eq_2_and_eq_3(kind: Any, pairs: int, triples: int, temperature: float) -> None:
    number = torch.arange(16)
    s = SliceFeatures(
        torch.randn((16, 3, 10), generator=torch.Generator().manual_seed(0)), number // 4, number // 8, number % 4
    )
    similarity, triplets = s.similarity(temperature), s.triplets(kind)
    switches: dict[str, Any] = {"temperature": temperature, "triplets": kind}
    one, terms = comparative(**switches).objective(s)
    assert int(terms) == triples
    torch.testing.assert_close(one, comparative_loss(similarity, triplets))
    printed, terms = comparative(name="contrastive", **switches).objective(s)
    assert int(terms) == pairs
    below = triplets & (s.scan[:, None, None] == s.scan[None, None, :])
    torch.testing.assert_close(printed, contrastive_loss(similarity, below, released=False))
    released, terms = comparative(name="contrastive", denominator="released", **switches).objective(s)
    assert int(terms) == 576
    torch.testing.assert_close(released, contrastive_loss(similarity, s.triplets("all"), released=True))
    assert len({round(float(x), 3) for x in (one, printed, released)}) == 3


def test_equal_slices_of_scans_cut_once_cost_the_logarithm_of_the_parts() -> None:
    number = torch.arange(16)
    s = SliceFeatures(torch.ones(16, 2, 10), number // 4, number // 4, number % 4)
    loss, terms = comparative(name="contrastive").objective(s)
    assert float(loss / terms) == pytest.approx(math.log(4), rel=1e-6)


def test_the_axes_take_turns_as_told() -> None:
    assert [comparative().axes_at(s) for s in range(4)] == [(0,), (1,), (2,), (0,)]
    assert comparative(axes="together").axes_at(5) == (0, 1, 2)
    passes = comparative(axes="passes")  # sixteen scans, two a step
    assert [passes.axes_at(s)[0] for s in (0, 7, 8, 15, 16, 23, 24)] == [0, 0, 1, 1, 2, 2, 0]
    method = comparative(axes="together")
    assert len(method.slices(torch.randn(4, 2, 8, 8, 8), placed())) == 3


def test_the_offset_depends_on_the_step_alone() -> None:
    method, compared = comparative(partitions=2), torch.randn(4, 2, 8, 8, 8)
    seen = {float(method.slices(compared, placed(step))[0].values.sum()) for step in range(0, 30, 3)}
    again = {float(method.slices(compared, placed(step))[0].values.sum()) for step in range(0, 30, 3)}
    assert seen == again
    assert len(seen) > 2


# --- what moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_features_train_the_encoder_and_the_output_trains_the_rest(name: str) -> None:
    method = comparative(name=name)
    networks = networks_of(method)
    student = networks["student"]
    encoder = set(encoder_of(method, student))
    assert encoder
    for step, moved in ((0, encoder), (5, set(student.state_dict()) - encoder)):
        student.zero_grad(set_to_none=True)
        step_plan = method.step_plan(step)
        method.prepare(networks, step_plan)
        method.loss(networks, placed(step), step_plan)["total"].backward()
        found = {n for n, p in student.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
        weights = {n for n, _ in student.named_parameters() if n.endswith("conv.weight")}
        assert found & weights == moved & weights
    StageSequence(method).hand_over(networks, 8)
    assert all(p.requires_grad for p in student.parameters())


def test_the_whole_network_can_be_trained_in_the_second_stage() -> None:
    method = comparative(freeze_encoder=False, space="probabilities")
    networks = networks_of(method)
    method.prepare(networks, method.step_plan(5))
    method.loss(networks, placed(5), method.step_plan(5))["total"].backward()
    first = next(networks["student"].parameters())
    assert first.grad is not None
    assert float(first.grad.abs().max()) > 0


@pytest.mark.parametrize("name", BOTH)
def test_the_gradient_does_not_grow_with_the_number_of_terms(name: str) -> None:
    norms: dict[str, list[float]] = {}
    for reduction in ("mean", "sum"):
        for partitions in (2, 4):
            method = comparative(name=name, partitions=partitions, reduction=reduction, space="probabilities")
            networks = networks_of(method)
            method.prepare(networks, method.step_plan(6))
            terms = method.loss(networks, placed(6), method.step_plan(6))
            terms["total"].backward()
            gradients = [p.grad.flatten() for p in networks["student"].parameters() if p.grad is not None]
            norms.setdefault(reduction, []).append(float(torch.cat(gradients).norm()))
    assert norms["sum"][1] > 1.5 * norms["sum"][0]
    assert max(norms["mean"]) < 2 * min(norms["mean"])
    assert norms["sum"][1] > 10 * norms["mean"][1]


def test_probabilities_are_compared_when_told_to() -> None:
    found = {}
    for space in ("logits", "probabilities"):
        method = comparative(space=space)
        networks = networks_of(method)
        found[space] = float(method.loss(networks, placed(6), method.step_plan(6))["total"].detach())
    logits = networks["student"](placed(6).images)
    (s,) = method.slices(torch.softmax(logits, dim=1), placed(6))
    loss, terms = method.objective(s)
    assert found["probabilities"] == pytest.approx(float(loss.detach()) / int(terms), rel=1e-5)
    assert found["logits"] != pytest.approx(found["probabilities"], rel=1e-3)


def test_bcp_as_host_begins_with_its_own_first_stage() -> None:
    stages = StageSequence(comparative({"updates": 20}, then="bcp"))
    networks = stages.build()
    step_plan = stages.step_plan(8)
    assert (step_plan.stage, step_plan.label) == ("pretrain", "bcp-pretrain")
    labelled = make_batch(4, 0, step=8)
    assert set(stages.loss(networks, labelled, step_plan)) == {"total", "pasted"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


def stopped_at(dataset: Dataset, recipe: Any, run: Path, cache: Path, step: int) -> dict[str, torch.Tensor]:
    """The student after ``step`` steps."""
    train_and_interrupt(dataset, recipe, run, step + 1, cache=cache)
    return clone(torch.load(run / "checkpoint.pt", weights_only=True)["networks"]["student"])


def test_in_the_second_stage_the_encoder_stays_as_it_is_to_the_last_bit(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 1}
    recipe = make_recipe_for("comparative", changes, feature_updates=3, output_updates=4, partitions=2)
    states = {s: stopped_at(dataset, recipe, tmp_path / str(s), tmp_path / "cache", s) for s in (1, 3, 7)}
    method = comparative(changes)
    names = encoder_of(method, method.build_student()).keys()
    assert not any(torch.equal(states[1][n], states[3][n]) for n in names if n.endswith("conv.weight"))
    assert all(torch.equal(states[3][n], states[7][n]) for n in names)
    assert not all(torch.equal(states[3][n], states[7][n]) for n in states[3])


def test_the_teacher_of_the_host_starts_as_the_pre_trained_student() -> None:
    stages = StageSequence(comparative(then="mean_teacher"))
    networks = stages.build()
    same = {}
    for step in (7, 8, 9):
        with torch.no_grad():
            for p in networks["student"].parameters():
                p.add_(1.0)
        stages.hand_over(networks, step)
        same[step] = weights_equal(networks["student"].state_dict(), networks["teacher"].state_dict())
    assert same == {7: False, 8: True, 9: False}, "once, at its start"


# --- when it ends -------------------------------------------------------------------------------------------------


def test_a_constant_loss_has_converged_and_a_falling_one_has_not() -> None:
    for values, expected in (([3.0] * 30, 10), ([3.0 * 0.9**k for k in range(30)], None)):
        convergence = ConvergenceMonitor(window=10, share=0.01)
        ended = None
        for k, value in enumerate(values):
            convergence.add(torch.tensor(value * 48), torch.tensor(48))
            if convergence.has_converged() and ended is None:
                ended = k
        assert ended == expected


def test_a_loss_is_looked_at_as_a_mean_over_the_terms_since_the_last_look() -> None:
    convergence = ConvergenceMonitor(window=2, share=0.01)
    for loss, count in ((4.0, 4), (36.0, 12)):  # 1 and 3 a triplet
        convergence.add(torch.tensor(loss), torch.tensor(count))
        assert not convergence.has_converged()
    assert not convergence.has_converged(), "nothing was comparable: no loss to look at"
    for loss, count in ((10.0, 2), (6.0, 6)):
        convergence.add(torch.tensor(loss), torch.tensor(count))
    assert convergence.has_converged(), "16 over 8 terms is the mean of 1 and 3"


def test_patches_that_never_show_one_place_are_told_and_not_trained_on() -> None:
    convergence = ConvergenceMonitor(window=2, share=0.01)
    with pytest.raises(TrainingError, match="No two patches show the same part of the body"):
        for _ in range(100):
            convergence.add(torch.tensor(0.0), torch.tensor(0))
            convergence.has_converged()


def test_each_stage_begins_without_the_moments_of_the_one_before(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 1}
    recipe = make_recipe_for("comparative", changes, feature_updates=3, output_updates=3, partitions=2)
    for stop, updates in ((3, 3), (4, 1), (6, 3), (7, 1)):
        stopped_at(dataset, recipe, tmp_path / str(stop), tmp_path / "cache", stop)
        state = torch.load(tmp_path / str(stop) / "checkpoint.pt", weights_only=True)["optimisers"]["student"]["state"]
        assert {int(entry["step"]) for entry in state.values()} == {updates}


@pytest.mark.parametrize("least", [4, 9])
def test_a_stage_lasts_as_long_as_it_must(dataset: Dataset, tmp_path: Path, least: int) -> None:
    switches = {"feature_updates": 40, "output_updates": 0, "look_every": 1, "window": 2, "least_updates": least}
    recipe = make_recipe_for(
        "comparative", {"patch": [16, 16, 8], "updates": 2}, **switches, converged=1.0, partitions=2
    )
    seen: list[str] = []
    train_on_cpu(
        dataset, recipe, tmp_path / "run", report=lambda step, steps, values: seen.append(str(values["stage"]))
    )
    assert least <= seen.count("features") < least + 6


def test_nothing_is_validated_before_the_student_segments(dataset: Dataset, tmp_path: Path) -> None:
    split = json.loads((dataset.folder / "split.json").read_text())
    labelled = next(iter(split["labelled"].values()))
    file = tmp_path / "split.json"
    file.write_text(json.dumps({**split, "labelled": {"2": labelled[:1]}, "validation": labelled[1:2]}))
    changes = {"patch": [16, 16, 8], "updates": 2, "validate_every": 1, "patience": 1}
    recipe = make_recipe_for("comparative", changes, feature_updates=3, output_updates=3, partitions=2)
    train_on_cpu(dataset, recipe, tmp_path / "run", split=file)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert min(row["step"] for row in rows if "validation_dice" in row) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stage_that_has_converged_ends_early_and_the_run_can_be_resumed(
    dataset: Dataset, tmp_path: Path, workers: int
) -> None:
    changes = {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 3, "workers": workers}
    switches = {"feature_updates": 40, "output_updates": 50, "look_every": 1, "window": 2, "least_updates": 5}
    recipe = make_recipe_for("comparative", changes, **switches, converged=1.0, partitions=2)
    train_on_cpu(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache")
    seen: list[str] = []

    def stop(step: int, steps: int, values: dict[str, Any]) -> None:
        seen.append(str(values["stage"]))
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", report=stop)

    def watch(step: int, steps: int, values: dict[str, Any]) -> None:
        seen.append(str(values["stage"]))

    train_on_cpu(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True, report=watch)
    assert weights_equal(load_run_weights(tmp_path / "whole"), load_run_weights(tmp_path / "broken"))
    assert seen.count("features") < 40
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 93


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"comparative\.volumes x crops"):
        comparative(volumes=1, crops=1)
    with pytest.raises(RecipeError, match=r"1 part\(s\) are too few|2 part\(s\) are too few"):
        comparative({"accumulate": 2}, volumes=1, crops=2)
    outside = {"kind": "custom", "function": "tests.trainer.test_students:thin", "modules": {"deepest": "first"}}
    with pytest.raises(RecipeError, match=r"`student\.encoding`"):
        comparative({"student": outside})
    comparative({"student": outside}, freeze_encoder=False)
    with pytest.raises(RecipeError, match=r"methods\.self_training\.restart"):
        comparative(then="self_training")
    with pytest.raises(RecipeError, match=r"methods\.comparative: then.* there is no method 'nobody'"):
        comparative(then="nobody")
    assert isinstance(comparative(name="contrastive"), Contrastive)
