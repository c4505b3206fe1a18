"""A committee: its members are runs of their own, what they say is calibrated and mixed, and one student is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from semiseg.dataset import Dataset, make_split
from tests.trainer.factories import (
    load_run_weights,
    make_recipe_for,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from tests.trainer.test_atlas import SHAPE, outlined, scans_of
from trainer.cases import IGNORE
from trainer.checkpoints import read_log
from trainer.errors import RecipeError
from trainer.loop import _Training
from trainer.methods import make_method
from trainer.methods.committee import Committee, LabelSource
from trainer.methods.method import SegmentationTask
from trainer.opinion_pool import (
    channels_from_outcomes,
    fit_pool_weights,
    fit_temperature,
    outcomes_from_channels,
    pool_opinions,
    scale_temperature,
)
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses, OverlappingRegions

TWO = ExclusiveClasses(2)
MEMBERS = ({"method": "supervised"}, {"method": "mean_teacher", "seed": 3})


def committee(
    changes: dict[str, Any] | None = None,
    *,
    labelled: int = 4,
    unlabelled: int = 4,
    targets: Any = TWO,
    **switches: Any,
) -> Committee:
    chosen = {"members": MEMBERS, "atlas": False, **switches}
    made = make_method(
        make_recipe_for("committee", changes, **chosen), SegmentationTask(1, targets, 2, labelled, unlabelled)
    )
    assert isinstance(made, Committee)
    return made


# --- opinions -----------------------------------------------------------------------------------------------------


def test_a_temperature_above_one_is_less_certain_and_one_leaves_everything() -> None:
    shares = np.asarray([[0.9, 0.1], [0.2, 0.8]], np.float32)
    np.testing.assert_allclose(scale_temperature(shares, 1.0), shares, rtol=1e-5)
    np.testing.assert_allclose(scale_temperature(shares, 2.0)[0], [0.75, 0.25], rtol=1e-5)
    np.testing.assert_allclose(scale_temperature(np.asarray([1.0, 0.0], np.float32), 1.0).sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("wanted", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_that_makes_an_opinion_right_as_often_as_it_says(wanted: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=2.0, size=(40_000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.asarray([random.choice(3, p=p) for p in honest])
    said = np.exp(logits * wanted) / np.exp(logits * wanted).sum(axis=1, keepdims=True)
    assert fit_temperature(said.astype(np.float32), truth) == pytest.approx(wanted, rel=0.06)


def test_weights_are_those_under_which_the_outlines_are_most_likely() -> None:
    random = np.random.default_rng(1)
    given = random.uniform(0.05, 1.0, size=(2, 5000))
    given[1] = np.where(random.random(5000) < 0.3, given[1], 0.9 * given[0])
    weights = fit_pool_weights(given)
    assert weights.sum() == pytest.approx(1.0)
    grid = np.linspace(0.001, 0.999, 999)
    best = grid[np.argmax([np.log(w * given[0] + (1 - w) * given[1]).mean() for w in grid])]
    assert weights[0] == pytest.approx(best, abs=0.02)
    np.testing.assert_allclose(fit_pool_weights(np.full((3, 10), 0.5)), 1 / 3)
    useless = np.stack([np.full(100, 0.9), np.full(100, 0.3)])
    np.testing.assert_allclose(fit_pool_weights(useless), [1.0, 0.0], atol=1e-6)


def test_who_knows_nothing_of_a_voxel_has_no_vote_there() -> None:
    one = np.asarray([[[[0.8, 0.2]]], [[[0.8, 0.2]]]], np.float32)  # two voxels
    other = np.asarray([[[[0.4, 0.6]]], [[[0.4, 0.6]]]], np.float32)
    known = np.asarray([[[1.0]], [[0.0]]], np.float32)
    found = pool_opinions([one, other], [0.5, 0.5], [None, known])
    np.testing.assert_allclose(found[0, 0, 0], [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found[1, 0, 0], [0.8, 0.2], rtol=1e-6)
    nobody = pool_opinions([one, other], [0.5, 0.5], [known, known])
    np.testing.assert_allclose(nobody[1, 0, 0], [0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_channels_become_outcomes_and_back(exclusive: bool) -> None:
    channels = np.random.default_rng(0).random((3, 2, 4, 5)).astype(np.float32)
    found = outcomes_from_channels(channels, exclusive=exclusive)
    assert found.shape == ((2, 4, 5, 3) if exclusive else (3, 2, 4, 5, 2))
    np.testing.assert_array_equal(channels_from_outcomes(found, exclusive=exclusive), channels)


# --- who is in it -------------------------------------------------------------------------------------------------


def test_a_round_has_students_of_the_round_before() -> None:
    first, second = committee(rounds=1), committee(rounds=2, students=3)
    assert [m.method for m in first.members()] == ["supervised", "mean_teacher"]
    assert [(m.method, m.seed) for m in second.members()] == [("committee", 1), ("committee", 2), ("committee", 3)]
    recipe = second.recipe_of(second.members()[0])
    assert recipe.methods["committee"]["rounds"] == 1
    assert recipe.methods["committee"]["members"] == list(MEMBERS)
    changed = committee(
        {"patience": 3},
        members=(
            {"method": "mean_teacher", "updates": 2, "student": {"kind": "vnet"}, "switches": {"weight": 3.0}},
            {"method": "supervised"},
        ),
    )
    taught, plain = map(changed.recipe_of, changed.members())
    assert (taught.updates, taught.student, taught.methods["mean_teacher"]["weight"]) == (2, {"kind": "vnet"}, 3.0)
    assert (plain.updates, plain.student, plain.patience) == (changed.recipe.updates, changed.recipe.student, None)
    folders = [changed._folder_of(one, held) for one in changed.members() for held in (("a", "b"), ("a", "c"))]
    assert len(set(folders)) == 4, "a run is known by its member and by what it learned from"


def test_a_member_with_another_network_does_not_start_from_the_weights_of_the_student() -> None:
    larger = {"kind": "unet", "channels": [8, 16], "residual_units": 0}
    members = [{"method": "supervised", "student": larger}, {"method": "supervised"}]
    made = committee({"init_from": "RUN"}, members=members)
    other, same = map(made.recipe_of, made.members())
    assert (other.init_from, same.init_from) == (None, Path("RUN"))


def test_weights_that_a_member_starts_from_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from semiseg.bundle.manifest import PretrainedWeights
    from trainer.methods.supervised import Supervised

    told = PretrainedWeights(name="some weights", revision="1", licence="mit")
    monkeypatch.setattr(Supervised, "pretrained", lambda self: (told,))
    assert StageSequence(committee()).pretrained() == (told,)
    assert StageSequence(committee(rounds=2)).pretrained() == (told,)


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="has none; train with `supervised`"):
        committee(unlabelled=0)
    with pytest.raises(RecipeError, match=r"folds: 1 labelled scan\(s\) do not make 2 parts"):
        committee(labelled=1, weighing="cross_fitted")
    with pytest.raises(RecipeError, match="committee is, or leads to, a committee; for further rounds"):
        committee(members=({"method": "committee"},))
    with pytest.raises(RecipeError, match="there is no method 'nobody'"):
        committee(members=({"method": "nobody"},))
    with pytest.raises(RecipeError, match=r"methods\.committee: .*updates"):
        committee(members=({"method": "supervised", "updates": 0},))
    with pytest.raises(RecipeError, match="supervised is listed twice; give it another seed"):
        committee(members=({"method": "supervised"}, {"method": "supervised"}))
    with pytest.raises(RecipeError, match=r"methods\.mean_teacher"):
        committee(members=({"method": "mean_teacher", "switches": {"wait": 1}},))
    with pytest.raises(RecipeError, match="committee -> committee is a cycle"):
        committee(host="committee")
    loop = make_recipe_for("atlas", host="cfr")
    loop = loop.model_copy(update={"methods": {**loop.methods, "cfr": {"host": "atlas"}}})
    with pytest.raises(RecipeError, match="atlas -> cfr -> atlas is a cycle"):
        make_method(loop, SegmentationTask(1, TWO, 2, 4, 4))
    leads = make_recipe_for("committee", members=[{"method": "atlas"}])
    leads = leads.model_copy(update={"methods": {**leads.methods, "atlas": {"host": "committee"}}})
    with pytest.raises(RecipeError, match="atlas is, or leads to, a committee"):
        make_method(leads, SegmentationTask(1, TWO, 2, 4, 4))


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"), labelled=4, cases=9)


CHANGES = {"patch": [16, 16, 8], "updates": 3, "checkpoint_every": 1}


def recipe(**switches: Any) -> Any:
    return make_recipe_for("committee", CHANGES, **{"members": MEMBERS, "atlas": False, **switches})


def members_of(run: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in (run / "members").glob("*/student.safetensors")}


def test_members_are_trained_once_and_one_student_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    told = list[str]()
    manifest = train_on_cpu(dataset, recipe(), tmp_path / "whole", cache=tmp_path / "cache", tell=told.append)
    assert manifest.provenance.method == "committee"
    assert manifest.provenance.labelled == 4
    made = members_of(tmp_path / "whole")
    assert sorted(name.rpartition("-")[0] for name in made) == ["mean_teacher-seed3", "supervised-seed0"]
    assert "times the mean volume of the outlined ones" in told[-1]
    assert told == [row["told"] for row in read_log(tmp_path / "whole" / "log.jsonl") if "told" in row]

    # Killed while the second member trains, then while the student does.
    def watch(what: str, done: int, total: int) -> None:
        if what.startswith("training mean_teacher") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(dataset, recipe(), tmp_path / "run", cache=tmp_path / "cache", watch=watch)
    first = members_of(tmp_path / "run")
    assert [name.partition("-")[0] for name in first] == ["supervised"]
    train_and_interrupt(dataset, recipe(), tmp_path / "run", 2, cache=tmp_path / "cache", resume=True)
    both = members_of(tmp_path / "run")
    train_on_cpu(dataset, recipe(), tmp_path / "run", cache=tmp_path / "cache", resume=True)
    assert members_of(tmp_path / "run") == both == {**both, **first}, "no member was trained twice"
    assert weights_equal(load_run_weights(tmp_path / "run"), load_run_weights(tmp_path / "whole"))


def test_a_second_round_shares_the_members_of_the_first_and_atlases_vote(dataset: Dataset, tmp_path: Path) -> None:
    told = list[str]()
    chosen = recipe(rounds=2, atlas=True, members=MEMBERS[:1])
    chosen = chosen.model_copy(update={"methods": {**chosen.methods, "atlas": {"min_dice": 0.0}}})
    train_on_cpu(dataset, chosen, tmp_path / "run", cache=tmp_path / "cache", tell=told.append)
    names = sorted(name.rpartition("-")[0] for name in members_of(tmp_path / "run"))
    assert names == ["committee-seed1", "committee-seed2", "supervised-seed0"]
    assert sum("Committee, round 1" in one for one in told) == 2
    assert sum("Committee, round 2" in one for one in told) == 1
    assert any("Atlases: labelled by one another" in one for one in told)


def learned_from(run: Path) -> dict[str, set[str]]:
    """The labelled scans of each member's run."""
    found = {}
    for folder in (run / "members").iterdir():
        split = yaml.safe_load((folder / "recipe.yaml").read_text())["split"]
        found[folder.name] = {*split["labelled"]}
        assert not split["validation"]
    return found


@pytest.mark.parametrize("rounds", [1, 2])
def test_cross_fitted_weights_come_from_members_that_did_not_see_the_scan(
    dataset: Dataset, tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[set[str], str]] = []
    original = Committee._by_network

    def watched(self: Committee, segmenter: Any, scans: Any) -> Any:
        of = original(self, segmenter, scans)

        def watch(names: Sequence[str]) -> Any:
            for name, channels, known in of(names):
                asked.append(({*segmenter.learned}, name))
                yield name, channels, known

        return watch

    train = _Training._train_member

    def training(self: Any, recipe: Any, name: str, labelled: tuple[str, ...]) -> Any:
        segmenter = train(self, recipe, name, labelled)
        segmenter.learned = labelled  # type: ignore[attr-defined]
        assert {*yaml.safe_load((self.members / name / "recipe.yaml").read_text())["split"]["labelled"]} == {*labelled}
        return segmenter

    monkeypatch.setattr(Committee, "_by_network", watched)
    monkeypatch.setattr(_Training, "_train_member", training)
    told = list[str]()
    chosen = recipe(weighing="cross_fitted", rounds=rounds)
    train_on_cpu(dataset, chosen, tmp_path / "run", cache=tmp_path / "cache", tell=told.append)
    labelled = {*make_split(dataset).labelled}
    judged = [(learned, name) for learned, name in asked if name in labelled]
    assert {name for _, name in judged} == labelled
    assert all(name not in learned and len(learned) == 2 for learned, name in judged)
    assert sum(learned == labelled for learned in learned_from(tmp_path / "run").values()) == (2 if rounds == 1 else 4)
    sentence = next(one for one in told if "weights learned" in one)
    assert "supervised (seed 0)" in sentence and "mean_teacher (seed 3)" in sentence


def test_scans_without_which_a_segment_is_missing_are_not_held_back() -> None:
    cases = [outlined(f"s{k}", (float(k), 0.0, 0.0)) for k in range(4)]
    cores = [replace(case, labels=np.minimum(np.asarray(case.labels), 1)) for case in cases[1:]]
    scans, told = scans_of([cases[0], *cores], 4)
    assert committee(weighing="cross_fitted")._folds(scans) == ()
    assert "without s0, s2 the labelled scans lack a segment" in told[0]
    fine, told = scans_of(cases, 4)
    assert committee(weighing="cross_fitted")._folds(fine) == (("s0", "s2"), ("s1", "s3"))
    assert told == []


def test_voxels_that_nobody_outlined_have_no_volume() -> None:
    case = outlined("s", (0.0, 0.0, 0.0))
    codes = np.zeros((4, 4, 4), np.uint8)
    codes[0], codes[1] = IGNORE, 1
    case = replace(case, labels=codes, has_ignored_voxels=True)
    assert committee(targets=OverlappingRegions(2))._volumes(codes, case) == [pytest.approx(0.016), 0.0]
    assert committee()._volumes(codes, case) == [pytest.approx(0.016), 0.0]


def test_patience_is_the_students_alone(dataset: Dataset, tmp_path: Path) -> None:
    document = json.loads((dataset.folder / "split.json").read_text())
    labels = next(iter(document["labelled"].values()))
    document["labelled"], document["validation"] = {str(len(labels)): labels[1:]}, labels[:1]
    (tmp_path / "split.json").write_text(json.dumps(document))
    chosen = recipe().model_copy(update={"patience": 1, "validate_every": 1})
    manifest = train_on_cpu(dataset, chosen, tmp_path / "run", split=tmp_path / "split.json")
    assert manifest.validation is not None
    assert len(members_of(tmp_path / "run")) == 2


def test_atlases_within_a_committee_keep_labels_of_their_own(dataset: Dataset, tmp_path: Path) -> None:
    chosen = recipe(host="atlas", members=MEMBERS[:1])
    methods = {**chosen.methods, "atlas": {"host": "supervised", "min_dice": 0.0}}
    chosen = chosen.model_copy(update={"methods": methods})
    train_and_interrupt(dataset, chosen, tmp_path / "run", 1, cache=tmp_path / "cache")
    labels = tmp_path / "run" / "pseudo" / "0"
    by_atlases, by_committee = (sorted((labels / source).glob("*.npy")) for source in ("atlas", "committee"))
    assert len(by_atlases) == len(by_committee) > 0
    assert any(not np.array_equal(np.load(a), np.load(b)) for a, b in zip(by_atlases, by_committee, strict=True))


class Fixed:
    """A network whose answer for a scan is its outline, blurred by a share that belongs to the network."""

    def __init__(self, truth: dict[str, NDArray[np.uint8]], share: float) -> None:
        self.truth, self.share = truth, share

    def of(self, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32], None]]:
        for name in names:
            right = np.stack([self.truth[name] == k for k in range(3)]).astype(np.float32)
            noise = np.random.default_rng(len(name)).dirichlet([1.0] * 3, right.shape[1:]).astype(np.float32)
            yield name, self.share * right + (1 - self.share) * np.moveaxis(noise, -1, 0), None


def test_a_better_member_gets_the_larger_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [outlined(f"s{k}", (float(k), 0.0, 0.0)) for k in range(4)]
    scans, _ = scans_of(cases, 4)
    truth = {case.case_id: np.asarray(case.labels) for case in cases}
    pair = [LabelSource("a network", True, Fixed(truth, share).of) for share in (0.9, 0.1)]
    asked = []

    def opinions(self: Committee, scans: Any, labelled: tuple[str, ...]) -> list[LabelSource]:
        asked.append(labelled)
        return pair

    monkeypatch.setattr(Committee, "_opinions", opinions)
    method = committee(weighing="cross_fitted")
    _, weights = method._weighed(pair, method._folds(scans), scans)
    assert weights[0] > 0.9
    assert asked == [("s1", "s3"), ("s0", "s2")], "each scan is judged by what was learned from the others"


def test_atlases_have_the_weight_of_all_networks_together() -> None:
    networks, atlases = [LabelSource("n", True, list)] * 3, [LabelSource("atlas", False, list)]
    method = committee(weighing="by_kind")
    np.testing.assert_allclose(method._fixed_weights(networks + atlases), [1 / 6] * 3 + [1 / 2])
    np.testing.assert_allclose(method._fixed_weights(networks), [1 / 3] * 3)
    equal = committee(weighing="equal")
    np.testing.assert_allclose(equal._fixed_weights(networks + atlases), [1 / 4] * 4)


@pytest.mark.parametrize("targets", [TWO, OverlappingRegions(2)])
def test_voxels_near_the_organ_are_weighed(targets: Any) -> None:
    method = committee(targets=targets)
    case = outlined("s", (0.0, 0.0, 0.0))
    right, picked = method._weighed_voxels(case, [np.zeros((targets.channels, *SHAPE), np.float32)])
    assert len(right) == len(picked)
    codes = np.asarray(case.labels).reshape(-1)
    if targets is TWO:
        np.testing.assert_array_equal(right, codes[picked])
    else:
        region, voxel = np.divmod(picked, codes.size)
        np.testing.assert_array_equal(right, 1 - ((codes[voxel] >> region) & 1))
    assert 0 < len(picked) < 2 * codes.size
