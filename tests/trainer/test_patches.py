"""Which scans come into a batch, where they are cut, and that a patch holds what was asked for."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.inference.windows import padding_for
from tests.trainer.factories import SEGMENTS, build_method, make_batch, make_case, make_tiny_recipe
from trainer.cases import PreparedCase, sample_segment_voxels
from trainer.mapped_arrays import from_file_reference, to_file_reference
from trainer.patches import BatchComposition, PatchRequest, PatchSampler, PatchSource, load_batches
from trainer.recipe import Recipe

PATCH = (8, 8, 8)
STILL = {"affine": 0.0, "gamma_probability": 0.0}


def recipe(patch: tuple[int, int, int] = PATCH, foreground: float = 0.5, **augmentation: object) -> Recipe:
    return make_tiny_recipe("supervised", {"patch": patch, "foreground": foreground, "augmentation": augmentation})


def source(
    chosen: Recipe, *cases: PreparedCase, slice_axis: int = 2, padding: str = "edge"
) -> tuple[PatchSource, dict[str, PreparedCase]]:
    held = {case.case_id: case for case in cases}
    return PatchSource(chosen, held, slice_axis, padding), held


def walk(draws: PatchSampler, compositions: list[BatchComposition]) -> list[list[PatchRequest]]:
    out = []
    before = BatchComposition(0, 0)
    for step, composition in enumerate(compositions):
        out.append(draws.requests(step, composition, before))
        before += composition
    return out


# --- which scans --------------------------------------------------------------------------------------------------


def draws_of(labelled: int, unlabelled: int, seed: int = 0) -> PatchSampler:
    cases = [make_case(f"l{k}", (10, 10, 10), seed=k) for k in range(labelled)]
    cases += [make_case(f"u{k}", (10, 10, 10), seed=k, labelled=False) for k in range(unlabelled)]
    chosen = make_tiny_recipe("supervised", {"seed": seed})
    held = {case.case_id: case for case in cases}
    return PatchSampler(chosen, held, [i for i in held if i[0] == "l"], [i for i in held if i[0] == "u"])


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 4), st.integers(0, 4), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_batch_holds_its_mixture_labelled_first(n: int, m: int, b_l: int, b_u: int, seed: int) -> None:
    for requests in walk(draws_of(n, m, seed), [BatchComposition(b_l, b_u)] * 4):
        assert [r.labelled for r in requests] == [True] * b_l + [False] * b_u
        assert all(r.case_id.startswith("l" if r.labelled else "u") for r in requests)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_each_pass_over_a_pool_sees_each_scan_once(n: int, batch: int, seed: int) -> None:
    requests = walk(draws_of(n, 3, seed), [BatchComposition(batch, 1)] * (4 * n))
    drawn = [r.case_id for step in requests for r in step if r.labelled]
    for first in range(0, len(drawn), n):
        assert len(set(drawn[first : first + n])) == len(drawn[first : first + n])
    others = [r.case_id for step in requests for r in step if not r.labelled]
    assert all(len(set(others[k : k + 3])) == len(others[k : k + 3]) for k in range(0, len(others), 3))


def test_one_labelled_scan_fills_a_batch_of_four() -> None:
    (requests,) = walk(draws_of(1, 3), [BatchComposition(4, 0)])
    assert [r.case_id for r in requests] == ["l0"] * 4
    assert len({r.seed for r in requests}) == 4, "four different patches of it"


def test_the_passes_are_shuffled_anew() -> None:
    drawn = [r.case_id for step in walk(draws_of(6, 1), [BatchComposition(6, 0)] * 5) for r in step]
    assert len({tuple(drawn[k : k + 6]) for k in range(0, 30, 6)}) > 1


def test_a_request_depends_on_the_seed_and_the_step_alone() -> None:
    mixtures = [BatchComposition(4 - k % 3, k % 3) for k in range(12)]
    whole = walk(draws_of(3, 5, seed=7), mixtures)
    before = sum(mixtures[:6], BatchComposition(0, 0))
    assert draws_of(3, 5, seed=7).requests(6, mixtures[6], before) == whole[6]
    assert walk(draws_of(3, 5, seed=8), mixtures) != whole


# --- where they are cut -------------------------------------------------------------------------------------------


def isolated(shape: tuple[int, int, int], voxel: tuple[int, int, int], reach: int = 0) -> PreparedCase:
    """A scan whose only foreground is one voxel, or a cube around it."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(max(0, v - reach), v + reach + 1) for v in voxel)] = 1
    image = np.zeros((1, *shape), np.float32)
    return PreparedCase("scan", image, labels, sample_segment_voxels(labels, SEGMENTS[:1]))


@given(st.tuples(*[st.integers(0, 19)] * 3), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_patch_on_demanded_foreground_contains_it(voxel: tuple[int, int, int], seed: int) -> None:
    case = isolated((20, 20, 20), voxel)
    made, held = source(recipe(foreground=1.0, **STILL), case)
    draws = PatchSampler(make_tiny_recipe("supervised", {"seed": seed, "foreground": 1.0}), held, ["scan"], [])
    (request,) = draws.requests(0, BatchComposition(1, 0), BatchComposition(0, 0))
    assert request.voxel == voxel
    assert int(made[request]["labels"].sum()) == 1


@given(st.tuples(*[st.integers(1, 22)] * 3), st.integers(0, 1000), st.sampled_from([(1.3, 1.3), (0.8, 1.25)]))
@settings(max_examples=60, deadline=None)
def test_a_turned_and_zoomed_patch_still_contains_the_demanded_foreground(
    voxel: tuple[int, int, int], seed: int, scale: tuple[float, float]
) -> None:
    turned = recipe(foreground=1.0, gamma_probability=0.0, scale=scale, rotate=40, rotate_out_of_plane=20)
    made, _ = source(turned, isolated((24, 24, 24), voxel, reach=1))
    sample = made[PatchRequest("scan", True, voxel, (seed, 2, 0, 0))]
    assert int(sample["labels"].sum()) > 0


@pytest.mark.parametrize("corner", [(1, 1, 1), (22, 22, 22), (1, 22, 1), (22, 1, 22)])
@pytest.mark.parametrize("side", [24, 16], ids=["longer than the patch", "as long"])
def test_a_turned_patch_contains_foreground_in_a_corner_of_the_scan(corner: tuple[int, int, int], side: int) -> None:
    x, y, z = (min(c, side - 2) for c in corner)
    turned = recipe((16, 4, 4), 1.0, gamma_probability=0.0, scale=(1.3, 1.3), rotate=45, rotate_out_of_plane=45)
    made, _ = source(turned, isolated((side, side, side), (x, y, z), reach=1))
    for seed in range(10):
        assert int(made[PatchRequest("scan", True, (x, y, z), (seed, 2, 0, 0))]["labels"].sum()) > 0


def test_without_foreground_a_patch_lies_anywhere_and_nothing_waits_for_it() -> None:
    empty = PreparedCase("scan", np.zeros((1, 20, 20, 20), np.float32), np.zeros((20, 20, 20), np.uint8), ())
    made, held = source(recipe(foreground=1.0, **STILL), empty)
    draws = PatchSampler(make_tiny_recipe("supervised", {"foreground": 1.0}), held, ["scan"], [])
    (request,) = draws.requests(0, BatchComposition(1, 0), BatchComposition(0, 0))
    assert request.voxel is None
    assert made[request]["labels"].shape == PATCH


def test_an_unlabelled_scan_is_cut_where_foreground_was_predicted() -> None:
    case = make_case("scan", (30, 30, 30), labelled=False)
    draws = PatchSampler(make_tiny_recipe("supervised", {"foreground": 1.0}), {"scan": case}, ["scan"], ["scan"])
    assert draws.requests(0, BatchComposition(0, 1), BatchComposition(0, 0))[0].voxel is None
    draws.foreground["scan"] = (np.asarray([[3, 4, 5]], np.int32),)
    assert draws.requests(0, BatchComposition(0, 1), BatchComposition(0, 0))[0].voxel == (3, 4, 5)
    draws.foreground["scan"] = ()  # a prediction without foreground
    assert draws.requests(0, BatchComposition(0, 1), BatchComposition(0, 0))[0].voxel is None


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 3, 1), (7, 20, 4)])
def test_a_scan_smaller_than_the_patch_lies_where_the_sliding_window_has_it(
    shape: tuple[int, int, int], padding: str
) -> None:
    case = make_case("scan", shape, seed=3)
    made, _ = source(recipe(**STILL), case, padding=padding)
    sample = made[PatchRequest("scan", True, None, (0, 2, 0, 5))]
    how = {"edge": {"mode": "edge"}, "zero": {}}[padding]
    pad = padding_for(shape, PATCH)
    image = np.pad(case.image, [(0, 0), *pad], **how)
    assert case.labels is not None
    labels = np.pad(case.labels, pad, **how)
    if shape[1] > PATCH[1]:  # along that axis the patch lies anywhere
        (start,) = (s for s in range(13) if np.array_equal(image[:, :, s : s + 8], sample["image"].numpy()))
        image, labels = image[:, :, start : start + 8], labels[:, start : start + 8]
    assert np.array_equal(sample["image"].numpy(), image)
    assert np.array_equal(sample["labels"].numpy(), labels)


# --- what is read there -------------------------------------------------------------------------------------------


def test_image_and_labels_are_cut_turned_and_mirrored_alike() -> None:
    shape = (20, 22, 24)
    where = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    labels = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    case = PreparedCase("scan", where, labels, ())
    chosen = recipe(gamma_probability=0.0, rotate=45, rotate_out_of_plane=20, scale=(0.8, 1.2), flip=(0, 1, 2))
    made, _ = source(chosen, case)
    for k in range(8):
        sample = made[PatchRequest("scan", True, (10, 11, 12), (0, 2, 0, k))]
        read_at = sample["image"].numpy()  # each voxel of the image says where in the scan it was read
        x, y, z = np.round(read_at).astype(int)
        assert (sample["labels"].numpy() == labels[x, y, z]).mean() > 0.995


@pytest.mark.parametrize("affine", [0.0, 1.0], ids=["plain", "turned"])
def test_a_patch_knows_where_in_its_scan_its_faces_lie(affine: float) -> None:
    shape = (20, 12, 6)
    where = np.stack(np.meshgrid(*[(np.arange(n, dtype=np.float32) + 0.5) / n for n in shape], indexing="ij"))
    case = PreparedCase("scan", where, np.zeros(shape, np.uint8), ())
    chosen = recipe(gamma_probability=0.0, affine=affine, rotate=20, scale=(0.9, 1.3), flip=(0, 1, 2))
    made, _ = source(chosen, case, padding="edge")
    (batch,) = load_batches(
        made, [[PatchRequest("scan", True, (10, 6, 3), (0, 2, 0, k)) for k in range(12)]], 0, 0, False
    )
    assert batch.where is not None
    assert batch.where.shape == (12, 3, 2)
    assert {bool(w[0, 0] > w[0, 1]) for w in batch.where} == {True, False}, "some are mirrored"
    for image, faces in zip(batch.images, batch.where, strict=True):
        for axis in range(2):  # along the last one the patch leaves the scan, whose border then repeats
            line = image[axis].movedim(axis, 0)[:, 4, 4]
            step = (faces[axis, 1] - faces[axis, 0]) / PATCH[axis]
            expected = faces[axis, 0] + step * (torch.arange(8) + 0.5)
            inside = (expected > 0.05) & (expected < 0.95)
            assert float((line - expected)[inside].abs().max()) < 0.03
    (part, _) = batch.parts(2)
    assert torch.equal(part.where, batch.where[::2])  # type: ignore[arg-type]


def test_several_crops_of_a_scan_come_one_after_the_other_and_differ() -> None:
    draws = draws_of(3, 5)
    steps = walk(draws, [BatchComposition(0, 4, crops=2)] * 5)
    seen = [r.case_id for requests in steps for r in requests]
    assert seen[::2] == seen[1::2]
    assert sorted(seen[:10:2]) == sorted(seen[10:20:2]) == [f"u{k}" for k in range(5)], "every pass sees each scan once"
    assert len({r.seed for requests in steps for r in requests}) == 20


def test_an_unlabelled_patch_shows_no_labels_even_where_there_are_some() -> None:
    made, _ = source(recipe(**STILL), isolated((8, 8, 8), (4, 4, 4), reach=1))
    assert int(made[PatchRequest("scan", False, None, (0, 2, 1, 0))]["labels"].sum()) == 0


def test_image_labels_and_faces_are_turned_alike() -> None:
    shape = (20, 20, 12)
    where = np.stack(np.meshgrid(*[(np.arange(n, dtype=np.float32) + 0.5) / n for n in shape], indexing="ij"))
    labels = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    case = PreparedCase("scan", where, labels, ())
    made, _ = source(recipe(**STILL, quarter_turns=1.0, flip=(0, 1, 2)), case)
    seen = set()
    for k in range(24):
        patch = made[PatchRequest("scan", True, (10, 11, 6), (0, 2, 0, k))]
        assert isinstance(patch, dict)
        x, y, z = (np.round(c * n - 0.5).astype(int) for c, n in zip(patch["image"].numpy(), shape, strict=True))
        assert np.array_equal(patch["labels"].numpy(), labels[x, y, z])
        for axis, faces in enumerate(patch["where"]):
            own = patch["image"][axis].movedim(axis, 0)[:, 0, 0]  # where it was read, along the axis
            seen.add((axis, bool(faces.isnan().any())))
            if faces.isnan().any():
                assert float(own.std()) == pytest.approx(0, abs=1e-6), "another axis lies there now"
            else:
                half = (faces[1] - faces[0]) / 16
                expected = torch.linspace(float(faces[0] + half), float(faces[1] - half), 8)
                torch.testing.assert_close(own, expected)
    assert seen == {(0, True), (0, False), (1, True), (1, False), (2, False)}


# --- batches ------------------------------------------------------------------------------------------------------


START_METHODS = [m for m in ("fork", "forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How worker processes start: forked up to Python 3.13 on Linux, by a server from 3.14 on, spawned elsewhere."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.usefixtures("start_method")
def test_worker_processes_make_the_same_batches() -> None:
    cases = [make_case(f"s{k}", (12, 12, 12), seed=k) for k in range(3)]
    chosen = make_tiny_recipe("supervised", {"augmentation": {"rotate": 20, "noise": 0.2, "gamma_probability": 1.0}})
    made, held = source(chosen, *cases)
    requests = walk(PatchSampler(chosen, held, list(held), list(held)), [BatchComposition(2, 1)] * 5)
    alone = list(load_batches(made, requests, 3, 0, False))
    by_workers = list(load_batches(made, requests, 3, 2, False))
    assert [b.step for b in alone] == [3, 4, 5, 6, 7]
    for a, b in zip(alone, by_workers, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.labelled, a.cases, a.step) == (b.labelled, b.cases, b.step)


def test_a_worker_that_is_not_forked_receives_file_names_and_maps_the_same_scans(tmp_path: Path) -> None:
    """What is pickled would be a copy of all scans in every worker."""
    case, guess = make_case("scan", (40, 40, 40)), np.ones((40, 40, 40), np.uint8)
    for name, array in {"image": case.image, "labels": case.labels, "guess": guess}.items():
        np.save(tmp_path / f"{name}.npy", array)
    image, labels, mapped_guess = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("image", "labels", "guess"))
    mapped = replace(case, image=image, labels=labels)
    chosen = make_tiny_recipe("supervised", {})
    pseudo = {"m": {"scan": mapped_guess}}
    sent = pickle.dumps(PatchSource(chosen, {"scan": mapped, "other": case}, 2, "edge", pseudo, "m"))
    assert len(sent) < case.image.nbytes + labels.nbytes + 20_000, "only the scan that lies in memory is sent"

    received, requests = pickle.loads(sent), [PatchRequest("scan", k % 2 == 0, (3, 3, 3), (1, k)) for k in range(4)]
    there = PatchSource(chosen, {"scan": case}, 2, "edge", {"m": {"scan": guess}}, "m")
    for request in requests:
        made, wanted = received[request], there[request]
        assert torch.equal(made["image"], wanted["image"]) and torch.equal(made["labels"], wanted["labels"])


def test_a_part_of_a_mapped_array_is_sent_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(24).reshape(4, 6))
    part = np.load(tmp_path / "a.npy", mmap_mode="r")[1:, ::2]
    assert np.array_equal(from_file_reference(to_file_reference(part)), np.arange(24).reshape(4, 6)[1:, ::2])


WILD = {"rotate": 20, "noise": 0.2, "gamma_probability": 1.0, "affine": 0.7, "flip": (0, 2), "contrast": 0.1}


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("count", [0, 2])
def test_patches_made_by_the_device_are_those_made_by_the_workers(padding: str, count: int) -> None:
    held = {f"s{k}": make_case(f"s{k}", (12, 7, 12), seed=k) for k in range(3)}
    chosen = {"patch": PATCH, "augmentation": WILD}
    apart = make_tiny_recipe("supervised", {**chosen, "augment_on": "device"})
    requests = walk(PatchSampler(apart, held, list(held), list(held)), [BatchComposition(2, 1)] * 5)
    there = PatchSource(apart, held, 2, padding, device=torch.device("cpu"))
    here = PatchSource(make_tiny_recipe("supervised", chosen), held, 2, padding, device=torch.device("cpu"))
    pairs = zip(load_batches(there, requests, 3, count, False), load_batches(here, requests, 3, 0, False), strict=True)
    for a, b in pairs:
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.labelled, a.cases, a.step) == (b.labelled, b.cases, b.step)


@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_nothing_of_a_patch_is_left_behind_when_another_device_makes_it(padding: str) -> None:
    """On the device without memory every operation that mixes devices fails, and every one that reads a value."""
    held = {"s": make_case("s", (12, 7, 12), seed=1)}
    apart = make_tiny_recipe(
        "supervised", {"patch": PATCH, "augment_on": "device", "augmentation": {**WILD, "noise": 0.0}}
    )
    there = PatchSource(apart, held, 2, padding, device=torch.device("meta"))
    requests = walk(PatchSampler(apart, held, ["s"], ["s"]), [BatchComposition(2, 1)] * 5)
    for batch in load_batches(there, requests, 0, 0, False):
        assert batch.images.shape == (3, 1, *PATCH)
        assert {batch.images.device.type, batch.labels.device.type} == {"meta"}


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_parts_of_a_batch_hold_every_patch_once_labelled_first(labelled: int, unlabelled: int, count: int) -> None:
    if not 0 < count <= labelled + unlabelled:
        return
    batch = make_batch(labelled, unlabelled, side=2)
    parts = list(batch.parts(count))
    assert sorted(c for part in parts for c in part.cases) == sorted(batch.cases)
    assert sum(part.labelled for part in parts) == labelled
    for part in parts:
        rows = [int(name.removeprefix("scan")) for name in part.cases]
        assert [row < labelled for row in rows] == [True] * part.labelled + [False] * (len(part) - part.labelled)
        assert torch.equal(part.images, batch.images[rows])
    assert max(len(p) for p in parts) - min(len(p) for p in parts) <= 1


def test_a_methods_mixtures_always_fill_the_batch() -> None:
    for name in ("supervised", "mean_teacher", "mn"):
        method = build_method(make_tiny_recipe(name, {"batch": 3}))
        for step in range(method.steps):
            assert method.step_plan(step).composition.total == 3


def test_soft_labels_of_a_guide_are_cut_and_turned_with_the_image() -> None:
    """Maps that say what the image says, voxel by voxel, still do so in a patch that was turned and mirrored."""
    case = make_case("scan", (12, 12, 12), labelled=False)
    lies = np.indices((12, 12, 12)).sum(axis=0).astype(np.float32)
    case = replace(case, image=lies[None])
    soft = np.stack([lies * 4, 255 - lies * 4, lies * 2]).astype(np.uint8)
    own = (lies > 15).astype(np.uint8)
    exact = {**STILL, "flip": (0, 1, 2), "quarter_turns": 1.0, "intensity_probability": 0.0}
    recipe = make_tiny_recipe("supervised", {"patch": PATCH, "augmentation": exact})
    pseudo = {"atlas": {"scan": soft}, "mine": {"scan": own}}
    source = PatchSource(recipe, {"scan": case, "other": make_case("other", (12, 12, 12))}, 2, "edge", pseudo, "mine")
    for seed in range(4):
        made = source[PatchRequest("scan", False, (6, 6, 6), (seed,))]
        found, image = made["guides"]["atlas"], made["image"][0]
        assert found.dtype == torch.uint8 and found.shape == (3, *PATCH)
        torch.testing.assert_close(found[0].float(), image * 4)
        torch.testing.assert_close(found[1].float(), 255 - image * 4)
        torch.testing.assert_close(found[2].float(), image * 2)
        assert torch.equal(made["labels"], (image > 15).long())
    outlined = source[PatchRequest("other", True, (6, 6, 6), (0,))]
    assert not outlined["guides"]["atlas"].any() and outlined["guides"]["atlas"].shape == (3, *PATCH)
    batch = next(
        load_batches(
            source, [[PatchRequest("other", True, None, (1,)), PatchRequest("scan", False, None, (2,))]], 0, 0, False
        )
    )
    assert batch.guides["atlas"].shape == (2, 3, *PATCH)
    (part,) = batch.parts(1)
    assert torch.equal(part.guides["atlas"], batch.guides["atlas"])
