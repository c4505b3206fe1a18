"""Which scans come into a batch, where they are cut, and that a patch holds what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from semiseg.inference.windows import padding_for
from tests.trainer.tiny import SEGMENTS, batch_of, case_of, method_of, recipe_of
from trainer.augmentation import Symmetry, change_values, draw_symmetry, draw_turn, place_cut, read_box, sample
from trainer.cases import PreparedCase, places_of
from trainer.device import workers
from trainer.patches import Draws, Mixture, PatchSource, Request, batches
from trainer.recipe import Augmentation, Recipe

PATCH = (8, 8, 8)
STILL = {"affine": 0.0, "gamma_probability": 0.0}


def recipe(patch: tuple[int, int, int] = PATCH, foreground: float = 0.5, **augmentation: object) -> Recipe:
    return recipe_of("supervised", {"patch": patch, "foreground": foreground, "augmentation": augmentation})


def source(
    chosen: Recipe, *cases: PreparedCase, slice_axis: int = 2, padding: str = "edge"
) -> tuple[PatchSource, dict[str, PreparedCase]]:
    held = {case.case_id: case for case in cases}
    return PatchSource(chosen, held, slice_axis, padding), held


def walk(draws: Draws, mixtures: list[Mixture]) -> list[list[Request]]:
    out = []
    labelled = unlabelled = 0
    for step, mixture in enumerate(mixtures):
        out.append(draws.requests(step, mixture, Mixture(labelled, unlabelled)))
        labelled, unlabelled = labelled + mixture.labelled, unlabelled + mixture.unlabelled
    return out


# --- which scans --------------------------------------------------------------------------------------------------


def draws_of(labelled: int, unlabelled: int, seed: int = 0) -> Draws:
    cases = [case_of(f"l{k}", (10, 10, 10), seed=k) for k in range(labelled)]
    cases += [case_of(f"u{k}", (10, 10, 10), seed=k, labelled=False) for k in range(unlabelled)]
    chosen = recipe_of("supervised", {"seed": seed})
    held = {case.case_id: case for case in cases}
    return Draws(chosen, held, [i for i in held if i[0] == "l"], [i for i in held if i[0] == "u"])


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 4), st.integers(0, 4), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_batch_holds_its_mixture_labelled_first(n: int, m: int, b_l: int, b_u: int, seed: int) -> None:
    for requests in walk(draws_of(n, m, seed), [Mixture(b_l, b_u)] * 4):
        assert [r.labelled for r in requests] == [True] * b_l + [False] * b_u
        assert all(r.case_id.startswith("l" if r.labelled else "u") for r in requests)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_each_pass_over_a_pool_sees_each_scan_once(n: int, batch: int, seed: int) -> None:
    requests = walk(draws_of(n, 3, seed), [Mixture(batch, 1)] * (4 * n))
    drawn = [r.case_id for step in requests for r in step if r.labelled]
    for first in range(0, len(drawn), n):
        assert len(set(drawn[first : first + n])) == len(drawn[first : first + n])
    others = [r.case_id for step in requests for r in step if not r.labelled]
    assert all(len(set(others[k : k + 3])) == len(others[k : k + 3]) for k in range(0, len(others), 3))


def test_one_labelled_scan_fills_a_batch_of_four() -> None:
    (requests,) = walk(draws_of(1, 3), [Mixture(4, 0)])
    assert [r.case_id for r in requests] == ["l0"] * 4
    assert len({r.seed for r in requests}) == 4, "four different patches of it"


def test_the_passes_are_shuffled_anew() -> None:
    drawn = [r.case_id for step in walk(draws_of(6, 1), [Mixture(6, 0)] * 5) for r in step]
    assert len({tuple(drawn[k : k + 6]) for k in range(0, 30, 6)}) > 1


def test_a_request_depends_on_the_seed_and_the_step_alone() -> None:
    mixtures = [Mixture(4 - k % 3, k % 3) for k in range(12)]
    whole = walk(draws_of(3, 5, seed=7), mixtures)
    before = Mixture(sum(m.labelled for m in mixtures[:6]), sum(m.unlabelled for m in mixtures[:6]))
    assert draws_of(3, 5, seed=7).requests(6, mixtures[6], before) == whole[6]
    assert walk(draws_of(3, 5, seed=8), mixtures) != whole


# --- where they are cut -------------------------------------------------------------------------------------------


def isolated(shape: tuple[int, int, int], voxel: tuple[int, int, int], reach: int = 0) -> PreparedCase:
    """A scan whose only foreground is one voxel, or a cube around it."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(max(0, v - reach), v + reach + 1) for v in voxel)] = 1
    image = np.zeros((1, *shape), np.float32)
    return PreparedCase("scan", image, labels, places_of(labels, SEGMENTS[:1]))


@given(st.tuples(*[st.integers(0, 19)] * 3), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_patch_on_demanded_foreground_contains_it(voxel: tuple[int, int, int], seed: int) -> None:
    case = isolated((20, 20, 20), voxel)
    made, held = source(recipe(foreground=1.0, **STILL), case)
    draws = Draws(recipe_of("supervised", {"seed": seed, "foreground": 1.0}), held, ["scan"], [])
    (request,) = draws.requests(0, Mixture(1, 0), Mixture(0, 0))
    assert request.voxel == voxel
    assert int(made[request]["labels"].sum()) == 1


@given(st.tuples(*[st.integers(1, 22)] * 3), st.integers(0, 1000), st.sampled_from([(1.3, 1.3), (0.8, 1.25)]))
@settings(max_examples=60, deadline=None)
def test_a_turned_and_zoomed_patch_still_contains_the_demanded_foreground(
    voxel: tuple[int, int, int], seed: int, scale: tuple[float, float]
) -> None:
    turned = recipe(foreground=1.0, gamma_probability=0.0, scale=scale, rotate=40, rotate_out_of_plane=20)
    made, _ = source(turned, isolated((24, 24, 24), voxel, reach=1))
    sample = made[Request("scan", True, voxel, (seed, 2, 0, 0))]
    assert int(sample["labels"].sum()) > 0


@pytest.mark.parametrize("corner", [(1, 1, 1), (22, 22, 22), (1, 22, 1), (22, 1, 22)])
@pytest.mark.parametrize("side", [24, 16], ids=["longer than the patch", "as long"])
def test_a_turned_patch_contains_foreground_in_a_corner_of_the_scan(corner: tuple[int, int, int], side: int) -> None:
    x, y, z = (min(c, side - 2) for c in corner)
    turned = recipe((16, 4, 4), 1.0, gamma_probability=0.0, scale=(1.3, 1.3), rotate=45, rotate_out_of_plane=45)
    made, _ = source(turned, isolated((side, side, side), (x, y, z), reach=1))
    for seed in range(10):
        assert int(made[Request("scan", True, (x, y, z), (seed, 2, 0, 0))]["labels"].sum()) > 0


def test_without_foreground_a_patch_lies_anywhere_and_nothing_waits_for_it() -> None:
    empty = PreparedCase("scan", np.zeros((1, 20, 20, 20), np.float32), np.zeros((20, 20, 20), np.uint8), ())
    made, held = source(recipe(foreground=1.0, **STILL), empty)
    draws = Draws(recipe_of("supervised", {"foreground": 1.0}), held, ["scan"], [])
    (request,) = draws.requests(0, Mixture(1, 0), Mixture(0, 0))
    assert request.voxel is None
    assert made[request]["labels"].shape == PATCH


def test_an_unlabelled_scan_is_cut_where_foreground_was_predicted() -> None:
    case = case_of("scan", (30, 30, 30), labelled=False)
    draws = Draws(recipe_of("supervised", {"foreground": 1.0}), {"scan": case}, ["scan"], ["scan"])
    assert draws.requests(0, Mixture(0, 1), Mixture(0, 0))[0].voxel is None
    draws.foreground["scan"] = (np.asarray([[3, 4, 5]], np.int32),)
    assert draws.requests(0, Mixture(0, 1), Mixture(0, 0))[0].voxel == (3, 4, 5)
    draws.foreground["scan"] = ()  # a prediction without foreground
    assert draws.requests(0, Mixture(0, 1), Mixture(0, 0))[0].voxel is None


@given(
    st.tuples(*[st.integers(10, 30)] * 3),  # ten voxels of the scan are eight of the patch at a zoom of 0.8
    st.sampled_from([None, (1.0, 1.0), (1.0, 1.3), (0.8, 0.8)]),
    st.booleans(),
    st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_a_patch_does_not_leave_a_scan_that_holds_it(
    shape: tuple[int, int, int], scale: tuple[float, float] | None, demanded: bool, seed: int
) -> None:
    for k in range(20):
        random = np.random.default_rng((seed, k))
        turn = None if scale is None else draw_turn(Augmentation(scale=scale), 2, random)
        voxel = tuple(int(random.integers(n)) for n in shape) if demanded else None
        cut = place_cut(shape, PATCH, turn, (1.0, 1.0, 2.0), voxel, random)  # type: ignore[arg-type]
        corners = (cut.matrix @ np.asarray([[0, 0, 0, 1], [7, 7, 7, 1]]).T)[:3]
        assert (corners > -1e-9).all()
        assert (corners[:, 1] <= np.asarray(shape) - 1 + 1e-9).all()


def test_patches_reach_every_voxel_of_the_scan() -> None:
    starts = {
        tuple(place_cut((10, 9, 8), PATCH, None, (1.0, 1.0, 1.0), None, np.random.default_rng(k)).matrix[:3, 3])
        for k in range(200)
    }
    assert starts == {(x, y, 0) for x in (0, 1, 2) for y in (0, 1)}


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 3, 1), (7, 20, 4)])
def test_a_scan_smaller_than_the_patch_lies_where_the_sliding_window_has_it(
    shape: tuple[int, int, int], padding: str
) -> None:
    case = case_of("scan", shape, seed=3)
    made, _ = source(recipe(**STILL), case, padding=padding)
    sample = made[Request("scan", True, None, (0, 2, 0, 5))]
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


def test_a_plain_cut_is_a_slice_of_the_array() -> None:
    array = np.random.default_rng(0).normal(size=(2, 12, 13, 14)).astype(np.float32)
    cut = place_cut((12, 13, 14), PATCH, None, (1.0, 1.0, 1.0), (5, 6, 7), np.random.default_rng(1))
    x, y, z = (int(v) for v in cut.matrix[:3, 3])
    patch, _ = sample(read_box(array, None, cut, PATCH), PATCH, "edge")
    assert np.array_equal(patch.numpy(), array[:, x : x + 8, y : y + 8, z : z + 8])


@pytest.mark.parametrize(("padding", "mode"), [("edge", "nearest"), ("zero", "grid-constant")])
@pytest.mark.parametrize("shape", [(20, 18, 16), (6, 7, 9), (9, 9, 1)], ids=["larger", "smaller", "flat"])
@pytest.mark.parametrize("patch", [(8, 8, 8), (10, 6, 4)])
def test_a_turned_cut_is_scipys_affine_transform(
    padding: str, mode: str, shape: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    random = np.random.default_rng(5)
    array = ndimage.gaussian_filter(random.normal(size=shape), 1).astype(np.float32)
    segments = random.integers(1, 200, shape, dtype=np.uint8)
    wild = Augmentation(scale=(0.7, 1.3), rotate=180, rotate_out_of_plane=30)
    for seed in range(5):
        random = np.random.default_rng(seed)
        cut = place_cut(shape, patch, draw_turn(wild, 2, random), (1.0, 1.0, 3.0), (3, 4, 5), random)
        matrix, offset = cut.matrix[:3, :3], cut.matrix[:3, 3]
        smooth = ndimage.affine_transform(array, matrix, offset, output_shape=patch, order=1, mode=mode)
        image, labels = sample(read_box(array[None], segments, cut, patch), patch, padding)
        assert np.abs(image[0].numpy() - smooth).max() < 1e-4
        nearest = ndimage.affine_transform(segments, matrix, offset, output_shape=patch, order=0, mode=mode)
        assert labels is not None
        assert (labels.numpy() != nearest).mean() < 0.005, "but for ties between two voxels"


def test_a_turn_is_a_rotation_of_the_body_also_where_slices_are_thick() -> None:
    spacing = np.array([0.5, 1.0, 4.0])
    wild = Augmentation(scale=(0.8, 1.2), rotate=180, rotate_out_of_plane=60)
    for seed in range(5):
        random = np.random.default_rng(seed)
        rotation, zoom = draw_turn(wild, 2, random) or (np.eye(3), 1.0)
        cut = place_cut((40, 40, 20), (8, 8, 8), (rotation, zoom), tuple(spacing), None, random)
        in_mm = np.diag(spacing) @ cut.matrix[:3, :3] @ np.diag(1 / spacing) * zoom
        assert np.allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-9)
        assert np.allclose(in_mm, rotation)


def test_image_and_labels_are_cut_turned_and_mirrored_alike() -> None:
    shape = (20, 22, 24)
    where = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    labels = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    case = PreparedCase("scan", where, labels, ())
    chosen = recipe(gamma_probability=0.0, rotate=45, rotate_out_of_plane=20, scale=(0.8, 1.2), flip=(0, 1, 2))
    made, _ = source(chosen, case)
    for k in range(8):
        sample = made[Request("scan", True, (10, 11, 12), (0, 2, 0, k))]
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
    (batch,) = batches(made, [[Request("scan", True, (10, 6, 3), (0, 2, 0, k)) for k in range(12)]], 0, 0, False)
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
    steps = walk(draws, [Mixture(0, 4, crops=2)] * 5)
    seen = [r.case_id for requests in steps for r in requests]
    assert seen[::2] == seen[1::2]
    assert sorted(seen[:10:2]) == sorted(seen[10:20:2]) == [f"u{k}" for k in range(5)], "every pass sees each scan once"
    assert len({r.seed for requests in steps for r in requests}) == 20


def test_an_unlabelled_patch_shows_no_labels_even_where_there_are_some() -> None:
    made, _ = source(recipe(**STILL), isolated((8, 8, 8), (4, 4, 4), reach=1))
    assert int(made[Request("scan", False, None, (0, 2, 1, 0))]["labels"].sum()) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_by_default_no_patch_is_turned_out_of_its_slices(axis: int) -> None:
    for seed in range(10):
        turn = draw_turn(Augmentation(rotate=90), axis, np.random.default_rng(seed))
        assert turn is not None
        rotation, _ = turn
        assert rotation[axis, axis] == pytest.approx(1)
        others = [a for a in range(3) if a != axis]
        assert np.allclose(rotation[axis, others], 0)
        assert np.allclose(rotation[others, axis], 0)
        assert abs(rotation[others[0], others[1]]) > 1e-3
    leaning = draw_turn(Augmentation(rotate_out_of_plane=20), axis, np.random.default_rng(0))
    assert leaning is not None
    assert abs(leaning[0][axis, axis] - 1) > 1e-3


def test_the_default_augmentation_zooms_all_axes_alike_between_nine_and_eleven_tenths() -> None:
    zooms = []
    for seed in range(200):
        turn = draw_turn(Augmentation(), 2, np.random.default_rng(seed))
        assert turn is not None
        assert np.allclose(turn[0], np.eye(3))
        zooms.append(turn[1])
    assert 0.9 <= min(zooms) < 0.91
    assert 1.09 < max(zooms) <= 1.1


def test_axes_are_mirrored_and_turned_as_often_as_allowed() -> None:
    random = np.random.default_rng(0)

    def drawn(patch: tuple[int, int, int] = PATCH, slice_axis: int = 2, **chosen: object) -> list[Symmetry]:
        augmentation = Augmentation.model_validate(chosen)
        return [draw_symmetry(augmentation, slice_axis, patch, random) for _ in range(400)]

    mirrored = drawn(flip=(0, 2))
    assert {axis for s in mirrored for axis in s.axes} == {0, 2}
    assert 150 < sum(0 in s.axes for s in mirrored) < 250
    assert 20 < sum(0 in s.axes for s in drawn(flip=(0, 2), flip_probability=0.1)) < 70
    assert not any(s.axes or s.turns for s in drawn())
    turned = drawn(quarter_turns=1.0, slice_axis=1)
    assert {s.turns for s in turned} == {0, 1, 2, 3}
    assert {s.plane for s in turned} == {(0, 2)}
    assert {s.turns for s in drawn((8, 6, 8), quarter_turns=1.0)} == {0, 2}, (
        "what is not square stays as long as it was"
    )
    assert 100 < sum(s.turns == 0 for s in drawn(quarter_turns=0.9)) < 160


def test_image_labels_and_faces_are_turned_alike() -> None:
    shape = (20, 20, 12)
    where = np.stack(np.meshgrid(*[(np.arange(n, dtype=np.float32) + 0.5) / n for n in shape], indexing="ij"))
    labels = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    case = PreparedCase("scan", where, labels, ())
    made, _ = source(recipe(**STILL, quarter_turns=1.0, flip=(0, 1, 2)), case)
    seen = set()
    for k in range(24):
        patch = made[Request("scan", True, (10, 11, 6), (0, 2, 0, k))]
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


@given(st.floats(0.3, 3.0), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_gamma_keeps_the_range_and_the_order_of_the_values(exponent: float, seed: int) -> None:
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 4, 4, 4)).astype(np.float32))
    bent = change_values(
        image, Augmentation(gamma=(exponent, exponent), gamma_probability=1.0), np.random.default_rng(0)
    )
    assert float(bent.min()) == pytest.approx(float(image.min()), abs=1e-5)
    assert float(bent.max()) == pytest.approx(float(image.max()), abs=1e-5)
    order = image.flatten().argsort()
    assert bool((bent.flatten()[order].diff() >= -1e-6).all())
    scaled = (image - image.min()) / (image.max() - image.min())
    torch.testing.assert_close((bent - image.min()) / (image.max() - image.min()), scaled**exponent, atol=1e-4, rtol=0)


def test_gamma_leaves_a_constant_patch_alone() -> None:
    image = torch.full((1, 4, 4, 4), -1.5)
    assert torch.equal(change_values(image, Augmentation(gamma_probability=1.0), np.random.default_rng(0)), image)


def test_brightness_contrast_and_noise_stay_within_their_limits() -> None:
    image = torch.zeros((1, 16, 16, 16))
    chosen = Augmentation(gamma_probability=0, brightness=0.2, intensity_probability=1.0)
    shifts = [float(change_values(image, chosen, np.random.default_rng(k)).max()) for k in range(50)]
    assert -0.2 <= min(shifts) < 0 < max(shifts) <= 0.2
    chosen = Augmentation(gamma_probability=0, contrast=0.3, intensity_probability=1.0)
    factors = [float(change_values(image + 1, chosen, np.random.default_rng(k)).max()) for k in range(50)]
    assert 0.7 <= min(factors) < 1 < max(factors) <= 1.3
    chosen = Augmentation(gamma_probability=0, noise=0.5, intensity_probability=1.0)
    spreads = [float(change_values(image, chosen, np.random.default_rng(k)).std()) for k in range(50)]
    assert 0 < max(spreads) < 0.52


# --- batches ------------------------------------------------------------------------------------------------------


def test_worker_processes_make_the_same_batches() -> None:
    cases = [case_of(f"s{k}", (12, 12, 12), seed=k) for k in range(3)]
    chosen = recipe_of("supervised", {"augmentation": {"rotate": 20, "noise": 0.2, "gamma_probability": 1.0}})
    made, held = source(chosen, *cases)
    requests = walk(Draws(chosen, held, list(held), list(held)), [Mixture(2, 1)] * 5)
    alone = list(batches(made, requests, 3, 0, False))
    by_workers = list(batches(made, requests, 3, 2, False))
    assert [b.step for b in alone] == [3, 4, 5, 6, 7]
    for a, b in zip(alone, by_workers, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.labelled, a.cases, a.step) == (b.labelled, b.cases, b.step)


WILD = {"rotate": 20, "noise": 0.2, "gamma_probability": 1.0, "affine": 0.7, "flip": (0, 2), "contrast": 0.1}


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("count", [0, 2])
def test_patches_made_by_the_device_are_those_made_by_the_workers(padding: str, count: int) -> None:
    held = {f"s{k}": case_of(f"s{k}", (12, 7, 12), seed=k) for k in range(3)}
    chosen = {"patch": PATCH, "augmentation": WILD}
    apart = recipe_of("supervised", {**chosen, "augment_on": "device"})
    requests = walk(Draws(apart, held, list(held), list(held)), [Mixture(2, 1)] * 5)
    there = PatchSource(apart, held, 2, padding, device=torch.device("cpu"))
    here = PatchSource(recipe_of("supervised", chosen), held, 2, padding, device=torch.device("cpu"))
    pairs = zip(batches(there, requests, 3, count, False), batches(here, requests, 3, 0, False), strict=True)
    for a, b in pairs:
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.labelled, a.cases, a.step) == (b.labelled, b.cases, b.step)


@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_nothing_of_a_patch_is_left_behind_when_another_device_makes_it(padding: str) -> None:
    """On the device without memory every operation that mixes devices fails, and every one that reads a value."""
    held = {"s": case_of("s", (12, 7, 12), seed=1)}
    apart = recipe_of("supervised", {"patch": PATCH, "augment_on": "device", "augmentation": {**WILD, "noise": 0.0}})
    there = PatchSource(apart, held, 2, padding, device=torch.device("meta"))
    requests = walk(Draws(apart, held, ["s"], ["s"]), [Mixture(2, 1)] * 5)
    for batch in batches(there, requests, 0, 0, False):
        assert batch.images.shape == (3, 1, *PATCH)
        assert {batch.images.device.type, batch.labels.device.type} == {"meta"}


def test_workers_are_for_a_gpu_unless_the_recipe_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    auto, three = recipe_of("supervised"), recipe_of("supervised", {"workers": 3})
    for cores, processes, expected in ((2, 1, 1), (6, 1, 5), (64, 1, 8), (16, 4, 3), (4, 4, 1)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert workers(auto, gpu) == expected
        assert workers(auto, cpu) == 0
        assert workers(three, gpu) == workers(three, cpu) == 3


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_parts_of_a_batch_hold_every_patch_once_labelled_first(labelled: int, unlabelled: int, count: int) -> None:
    if not 0 < count <= labelled + unlabelled:
        return
    batch = batch_of(labelled, unlabelled, side=2)
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
        method = method_of(recipe_of(name, {"batch": 3}))
        for step in range(method.steps):
            mixture = method.turn(step).mixture
            assert mixture.labelled + mixture.unlabelled == 3
