"""Atlases: labelled scans label the others by registration, judge themselves, and step aside where they do not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.dataset import Dataset
from semiseg.inference.segmenter import Segmenter
from tests.trainer.factories import (
    load_run_weights,
    make_batch,
    make_recipe_for,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from tests.trainer.test_registration import blob
from trainer.atlas_labels import AtlasSet
from trainer.atlas_quality import SHARPNESS, AtlasAssessment, AtlasScore
from trainer.cases import IGNORE, PreparedCase
from trainer.checkpoints import read_log
from trainer.errors import RecipeError
from trainer.label_channels import LabelChannels
from trainer.label_fusion import LabelFusion
from trainer.losses import soft_loss
from trainer.methods import METHODS, make_method
from trainer.methods.atlas import AtlasMethod
from trainer.methods.method import SegmentationTask
from trainer.recipe import Recipe
from trainer.scan_labelling import TrainingScans
from trainer.soft_labels import from_bytes, to_bytes, to_label_map
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses, OverlappingRegions

TWO = ExclusiveClasses(2)
SHAPE = (28, 32, 24)
CENTRES = [(0.0, 0.0, 0.0), (3.0, -2.0, 1.0), (-2.0, 3.0, -2.0), (1.0, 2.0, 2.0), (-3.0, -1.0, 1.0)]


def outlined(name: str, centre: tuple[float, float, float], *, labelled: bool = True) -> PreparedCase:
    """An ellipsoid whose core is a segment of its own."""
    image, mask = blob(SHAPE, (1.0, 1.0, 1.0), centre)
    _, core = blob(SHAPE, (1.0, 1.0, 1.0), centre, (4.5, 6.0, 4.0))
    codes = (mask + core).astype(np.uint8)
    return PreparedCase(name, image[None], codes if labelled else None, ())


def noise_cases(count: int) -> list[PreparedCase]:
    """Scans of noise with boxes as outlines, which nothing in the image tells."""
    random = np.random.default_rng(0)
    cases = []
    for k in range(count):
        image = random.normal(size=(1, *SHAPE)).astype(np.float32)
        labels = np.zeros(SHAPE, np.uint8)
        x, y, z = (int(random.integers(0, n - 8)) for n in SHAPE)
        labels[x : x + 8, y : y + 4, z : z + 8], labels[x : x + 8, y + 4 : y + 8, z : z + 8] = 1, 2
        cases.append(PreparedCase(f"s{k}", image, labels, ()))
    return cases


def nobody(recipe: Recipe, name: str, labelled: tuple[str, ...]) -> Segmenter:
    raise AssertionError("atlases train no network")


def scans_of(cases: Sequence[PreparedCase], labelled: int, processes: int = 1) -> tuple[TrainingScans, list[str]]:
    names, told = [case.case_id for case in cases], list[str]()
    return TrainingScans(
        cases={case.case_id: case for case in cases},
        labelled=tuple(names[:labelled]),
        unlabelled=tuple(names[labelled:]),
        processes=processes,
        cache=Path("nowhere"),  # scans in memory have no names that a cache could know them by
        train=nobody,
        tell=told.append,
        progress=lambda what, done, total: None,
    ), told


def atlas(changes: dict[str, Any] | None = None, *, unlabelled: int = 4, targets: Any = TWO, **switches: Any) -> Any:
    return make_method(make_recipe_for("atlas", changes, **switches), SegmentationTask(1, targets, 2, 4, unlabelled))


def labels_of(method: AtlasMethod, scans: TrainingScans) -> dict[str, NDArray[np.uint8]]:
    return dict(method.scan_labeller(0, scans)(scans.unlabelled))


def dice(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> list[float]:
    return [
        float(2 * ((found == k) & (wanted == k)).sum() / ((found == k).sum() + (wanted == k).sum())) for k in (1, 2)
    ]


def test_atlases_outline_a_scan_that_nobody_outlined() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES)]
    scans, told = scans_of(cases, 4)
    found = labels_of(atlas(), scans)
    assert found.keys() == {"s4"}
    assert found["s4"].shape == (4, *SHAPE), "three channels and a weight"
    wanted, copied = np.asarray(cases[4].labels), np.asarray(cases[1].labels)
    assert min(dice(to_label_map(found["s4"], TWO), wanted)) > 0.85 > max(dice(copied, wanted))
    probabilities, weights = from_bytes(torch.from_numpy(found["s4"])[None])
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, *SHAPE), atol=0.01, rtol=0)
    assert float(weights.min()) < float(weights.median()) and float(weights.max()) == 1.0
    assert len(told) == 1
    assert "reach a mean Dice of 0." in told[0]


def test_two_processes_label_as_one_does() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES)]
    one, _ = scans_of(cases, 3)
    two, _ = scans_of(cases, 3, processes=2)
    here, there = labels_of(atlas(), one), labels_of(atlas(), two)
    assert list(here) == list(there) == ["s3", "s4"]
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_regions_and_voxels_that_nobody_outlined() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES[:4])]
    regions = []
    for case in cases:  # the whole is a region, the core another
        codes = np.asarray(case.labels)
        regions.append(replace(case, labels=((codes > 0) | ((codes == 2) << 1)).astype(np.uint8)))
    unknown = np.array(regions[0].labels)
    unknown[: SHAPE[0] // 2] = IGNORE
    regions[0] = replace(regions[0], labels=unknown, has_ignored_voxels=True)
    both = OverlappingRegions(2)
    scans, _ = scans_of(regions, 3)
    found = labels_of(atlas(targets=both), scans)["s3"]
    assert found.shape == (3, *SHAPE), "two channels and a weight"
    codes = to_label_map(found, both)
    truth = np.asarray(regions[3].labels)
    for bit in (0, 1):
        a, b = (codes >> bit) & 1, (truth >> bit) & 1
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85

    half, _ = scans_of([regions[0], regions[3]], 1)
    alone = labels_of(atlas(targets=both), half)["s3"]
    inside = truth > 0
    unknown_half, known_half = inside.copy(), inside.copy()
    unknown_half[SHAPE[0] // 2 - 3 :], known_half[: SHAPE[0] // 2 + 3] = False, False
    assert np.median(alone[-1][unknown_half]) == 0, "where the only atlas knows nothing its label has no weight"
    assert np.median(alone[-1][known_half]) > 100


def masks_of(*says: float, known: float = 1.0) -> NDArray[np.float32]:
    """Warped masks of one segment, and how far the label is known, in a row of voxels."""
    row = np.asarray(says, np.float32).reshape(1, 1, 1, -1)
    return np.concatenate([row * known, np.full_like(row, known)])


def row(*values: float) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(1, 1, -1)


def test_a_vote_counts_by_the_likeness_of_the_images_around() -> None:
    fusion = LabelFusion(2.0, 1, (1, 1, 2))
    fusion.add(masks_of(1.0, 1.0), row(0.0, 1.0))
    fusion.add(masks_of(0.0, 0.0), row(1.0, 0.0))
    share = 1.0 / (1.0 + np.exp(-2.0))
    np.testing.assert_allclose(fusion.segment_probabilities().ravel(), [share, 1 - share], rtol=1e-5)
    np.testing.assert_allclose(fusion.nearest, 0.0)


@given(
    away=st.lists(st.floats(0, 400), min_size=1, max_size=5),
    says=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    sharpness=st.sampled_from(SHARPNESS),
)
def test_votes_taken_in_one_by_one_are_the_weighted_mean_however_unlike_the_images_are(
    away: list[float], says: list[float], sharpness: float
) -> None:
    fusion = LabelFusion(sharpness, 1, (1, 1, 1))
    for d, said in zip(away, says, strict=False):
        fusion.add(masks_of(said), row(d))
    weights = np.exp(-sharpness * (np.asarray(away) - min(away)))
    expected = (weights * np.asarray(says[: len(away)])).sum() / weights.sum()
    assert float(fusion.segment_probabilities().item()) == pytest.approx(expected, abs=1e-4)
    assert float(fusion.nearest.item()) == pytest.approx(min(away), rel=1e-6)


def test_who_does_not_know_a_voxel_has_no_vote_and_half_known_ones_are_not_thinned() -> None:
    fusion = LabelFusion(2.0, 1, (1, 1, 1))
    fusion.add(masks_of(1.0, known=0.0), row(0.0))
    assert float(fusion.segment_probabilities().item()) == 0.0 and np.isinf(fusion.nearest).all()
    fusion.add(masks_of(1.0, known=0.5), row(3.0))
    assert float(fusion.segment_probabilities().item()) == pytest.approx(1.0)
    assert float(fusion.nearest.item()) == 3.0


def test_a_wrong_atlas_is_left_out_and_named() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES)]
    shifted = np.roll(np.asarray(cases[1].labels), 12, axis=1)
    cases[1] = replace(cases[1], labels=shifted)
    scans, told = scans_of(cases, 4)
    found = labels_of(atlas(), scans)["s4"]
    assert "s1 labels the others much worse than the rest" in told[0]
    assert "are not used" not in told[0], "what it did to the others does not count"
    assert min(dice(to_label_map(found, TWO), np.asarray(cases[4].labels))) > 0.85


def judgement(alone: dict[str, float]) -> AtlasAssessment:
    return AtlasAssessment(0.8, alone, 2.0, 0.1, 1.0)


def test_at_least_two_atlases_are_kept_and_two_cannot_tell_who_is_wrong() -> None:
    assert judgement({"a": 0.9, "b": 0.1}).outliers() == []
    assert judgement({"a": 0.8, "b": 0.82, "c": 0.3}).outliers() == ["c"]
    assert judgement({"a": 0.8, "b": 0.75, "c": 0.7}).outliers() == []


def test_a_labelled_scan_without_the_organ_does_not_switch_the_judgement_off() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES)]
    empty = noise_cases(1)[0]
    cases[2] = replace(empty, case_id="s2", labels=np.zeros(SHAPE, np.uint8))
    scans, told = scans_of(cases, 4)
    found = labels_of(atlas(), scans)["s4"]
    assert "s2 labels the others much worse" in told[0]
    assert min(dice(to_label_map(found, TWO), np.asarray(cases[4].labels))) > 0.85
    useless = [*noise_cases(3), cases[4]]
    useless[1] = replace(useless[1], labels=np.zeros(SHAPE, np.uint8))
    scans, told = scans_of(useless, 3)
    assert not labels_of(atlas(), scans)["s4"].any()
    assert "are not used" in told[0]
    nothing = [replace(case, labels=np.zeros(SHAPE, np.uint8)) for case in cases[:3]]
    scans, told = scans_of([*nothing, cases[4]], 3)
    assert not labels_of(atlas(), scans)["s4"].any()
    assert "no labelled scan holds a segment" in told[0]


def test_a_scan_that_looks_like_no_atlas_is_named_and_counts_less() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES)]
    cases.append(replace(noise_cases(1)[0], case_id="strange", labels=None))
    scans, told = scans_of(cases, 4)
    found = labels_of(atlas(), scans)
    assert np.median(found["s4"][-1]) > 200 > 128 > np.median(found["strange"][-1])
    assert told[1] == "Atlases: 1 scan(s) resemble no atlas, and their labels count less: strange."
    assert (found["strange"][-1] > 0).any(), "what is known is never rounded away"


def test_atlases_that_cannot_label_one_another_are_not_used() -> None:
    scans, told = scans_of(noise_cases(4), 3)
    found = labels_of(atlas(), scans)["s3"]
    assert told[0].endswith("That is below 0.5 (methods.atlas.min_dice), so the atlases are not used.")
    assert not found.any()


def test_without_weight_the_students_loss_is_the_hosts_own() -> None:
    method = atlas(host="mean_teacher")
    stages, batch = StageSequence(method), make_batch(2, 2)
    networks = stages.build()
    step_plan = stages.step_plan(0)
    alone = METHODS["mean_teacher"](method.recipe, method.task)
    nothing = torch.zeros((4, 4, 8, 8, 8), dtype=torch.uint8)
    torch.manual_seed(7)
    one = stages.loss(networks, replace(batch, guides={"atlas": nothing}), step_plan)
    torch.manual_seed(7)
    other = alone.loss(networks, batch, step_plan)
    torch.testing.assert_close(one["total"], other["total"])
    soft = torch.randint(0, 256, nothing.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    torch.manual_seed(7)
    more = stages.loss(networks, replace(batch, guides={"atlas": soft}), step_plan)
    logits = networks["student"](batch.images)[2:]
    expected = soft_loss(logits, soft[2:, :-1] / 255.0, TWO, soft[2:, -1] / 255.0)
    expected = expected * (soft[2:, -1] / 255.0).mean()
    torch.testing.assert_close(more["total"] - other["total"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 2.0), ("falling", 1.0), ("ramp", 2.0 * np.exp(-1.25))])
def test_the_weight_follows_its_schedule(schedule: str, expected: float) -> None:
    method = atlas({"updates": 100}, weight=2.0, schedule=schedule)
    assert method.guidance_weight(50) == pytest.approx(expected)


def test_what_the_labelled_scans_say() -> None:
    found = [
        AtlasScore("a", (None, 0.5), (0.6, 0.8, 0.7, 0.6), 0.1, 1.0),
        AtlasScore("b", (0.4, None), (0.5, 0.7, 0.6, 0.5), 0.3, 3.0),
        AtlasScore("c", (0.6, None), None, 0.5, 2.0),
    ]
    judged = AtlasAssessment.from_scores(["a", "b"], found)
    assert judged == AtlasAssessment(0.75, {"a": 0.5, "b": 0.5}, SHARPNESS[1], 0.3, 2.0)
    assert AtlasAssessment.from_scores(["a"], []) == AtlasAssessment(None, {}, 2.0, None, None)


def test_channels_of_bytes_and_back() -> None:
    segments = np.asarray([0.25, 0.5], np.float32).reshape(2, 1, 1, 1)
    assert LabelChannels(2, False).from_segments(segments).ravel().tolist() == [0.25, 0.25, 0.5]
    assert LabelChannels(2, True).from_segments(segments).ravel().tolist() == [0.25, 0.5]
    kept = to_bytes(np.asarray([0.0, 0.5, 1.2]).reshape(3, 1, 1, 1), np.asarray([1.0]).reshape(1, 1, 1))
    probabilities, weights = from_bytes(torch.from_numpy(kept)[None])
    torch.testing.assert_close(probabilities.ravel(), torch.tensor([0.0, 128 / 255, 1.0]))
    assert float(weights) == 1.0


def test_a_scan_set_of_one_labelled_scan_works_and_says_so() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES[:2])]
    scans, told = scans_of(cases, 1)
    found = labels_of(atlas(), scans)["s1"]
    assert "a single labelled scan cannot be assessed" in told[0]
    assert min(dice(to_label_map(found, TWO), np.asarray(cases[1].labels))) > 0.8


def test_there_has_to_be_something_to_label() -> None:
    with pytest.raises(RecipeError, match="has none; train with `supervised`"):
        atlas(unlabelled=0)
    with pytest.raises(RecipeError, match=r"methods\.atlas: .*min_dice"):
        atlas(min_dice=1.5)


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"), labelled=3)


@pytest.mark.parametrize("host", ["supervised", "mean_teacher"])
def test_a_run_that_is_resumed_keeps_its_labels_and_ends_with_the_same_weights(
    dataset: Dataset, tmp_path: Path, host: str
) -> None:
    recipe = make_recipe_for(
        "atlas", {"patch": [16, 16, 8], "updates": 4, "checkpoint_every": 2}, host=host, min_dice=0.0
    )
    told = list[str]()
    whole = train_on_cpu(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache", tell=told.append)
    assert whole.provenance.method == "atlas"
    assert "mean Dice" in told[0]
    assert [row["told"] for row in read_log(tmp_path / "whole" / "log.jsonl") if "told" in row] == told
    assert not (tmp_path / "whole" / "pseudo").exists()

    train_and_interrupt(dataset, recipe, tmp_path / "run", 1, cache=tmp_path / "cache")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "pseudo" / "0" / "atlas").glob("*.npy")}
    assert len(made) == len(dataset.cases) - 5, "all but three labelled, a test and a development scan"
    next(iter(made)).unlink()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*-atlas.npy")}
    assert len(kept) == len(made), "other runs need not register again"
    train_and_interrupt(dataset, recipe, tmp_path / "run", 3, cache=tmp_path / "cache", resume=True)
    again = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "pseudo" / "0" / "atlas").glob("*.npy")}
    assert again.keys() == made.keys()
    assert sum(again[p] != made[p] for p in made) == 1, "only the one that was missing was made again"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*-atlas.npy")} == kept
    train_on_cpu(dataset, recipe, tmp_path / "run", cache=tmp_path / "cache", resume=True)
    assert weights_equal(load_run_weights(tmp_path / "run"), load_run_weights(tmp_path / "whole"))


def test_its_student_learns_from_the_atlases(dataset: Dataset, tmp_path: Path) -> None:
    weights = []
    for weight in (0.0, 1.0):
        recipe = make_recipe_for("atlas", {"patch": [16, 16, 8]}, host="supervised", weight=weight, min_dice=0.0)
        train_on_cpu(dataset, recipe, tmp_path / str(weight), cache=tmp_path / "cache")
        weights.append(load_run_weights(tmp_path / str(weight)))
    assert not weights_equal(*weights)


def test_the_atlases_object_can_leave_some_out() -> None:
    cases = [outlined(f"s{k}", centre) for k, centre in enumerate(CENTRES[:3])]
    atlases = AtlasSet.from_cases(cases, cases, LabelChannels(2, False), Path("nowhere"), 8)
    assert atlases.without(["s1"]).names == ("s0", "s2")
    assert atlases.work == 1.0
