"""Overlap and surface distances agree with hand calculation, with brute force, and with MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from semiseg.errors import VolumeError
from semiseg.evaluation.metrics import METRICS, SegmentScore, f1_of_means, score, surface, surface_distances

Mask = NDArray[np.bool_]
SIDES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
SPACINGS = st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 3.0])] * 3)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    shape = draw(SIDES)
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))


def cube(at: tuple[int, int, int], side: int = 6, shape: tuple[int, int, int] = (24, 24, 24)) -> Mask:
    out = np.zeros(shape, dtype=bool)
    out[tuple(slice(a, a + side) for a in at)] = True
    return out


def affine_of(spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.diag([*spacing, 1.0])


def brute_surface(mask: Mask) -> list[tuple[int, int, int]]:
    """Voxels with a face neighbour outside the mask, one voxel and one neighbour at a time."""
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    inside = {tuple(int(v) for v in p) for p in np.argwhere(mask)}
    return [p for p in inside if any((p[0] + x, p[1] + y, p[2] + z) not in inside for x, y, z in steps)]


def brute_distances(a: Mask, b: Mask, affine: NDArray[np.float64]) -> list[float]:
    world_b = [affine[:3, :3] @ q for q in brute_surface(b)]
    return sorted(min(float(np.linalg.norm(affine[:3, :3] @ p - q)) for q in world_b) for p in brute_surface(a))


def same(a: SegmentScore, b: SegmentScore) -> None:
    for metric in METRICS:
        assert getattr(a, metric) == pytest.approx(getattr(b, metric), abs=1e-9, nan_ok=True), metric


def test_equal_masks_are_perfect() -> None:
    found = score(cube((3, 4, 5)), cube((3, 4, 5)), affine_of((1, 2, 3)))
    assert (found.dice, found.jaccard, found.hd95_mm, found.assd_mm, found.asd_mm) == (1, 1, 0, 0, 0)
    assert found.prediction_ml == pytest.approx(6**3 * 6 / 1000) == found.reference_ml


@pytest.mark.parametrize(("axis", "mm"), [(0, 0.5), (1, 1.0), (2, 3.0)])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_a_shifted_cube_is_as_far_as_it_was_shifted(axis: int, mm: float, shift: int) -> None:
    place = [8, 8, 8]
    place[axis] += shift
    found = score(cube((place[0], place[1], place[2])), cube((8, 8, 8)), affine_of((0.5, 1.0, 3.0)))
    overlap = (6 - shift) / 6
    assert found.dice == pytest.approx(overlap)
    assert found.jaccard == pytest.approx(overlap / (2 - overlap))
    # The 36 voxels of the front face (of 152) are exactly that far, and no voxel is farther.
    assert found.hd95_mm == pytest.approx(shift * mm)


def test_two_slabs_have_the_distance_between_them() -> None:
    first, second = np.zeros((5, 5, 20), bool), np.zeros((5, 5, 20), bool)
    first[:, :, 2], second[:, :, 9] = True, True
    found = score(first, second, affine_of((1, 1, 2.5)))
    assert (found.dice, found.jaccard) == (0, 0)
    assert found.hd95_mm == found.assd_mm == found.asd_mm == pytest.approx(7 * 2.5)


def test_one_way_distance_does_not_see_what_was_left_out_and_the_symmetric_one_does() -> None:
    both = cube((2, 2, 2), 4) | cube((15, 15, 15), 4)
    found = score(cube((2, 2, 2), 4), both, np.eye(4))
    assert found.asd_mm == 0
    assert found.assd_mm > 5 and found.hd95_mm > 15


def test_symmetric_distance_pools_both_surfaces() -> None:
    # One voxel against a row of five: 1 distance of 0 one way; 0, 1, 2, 3, 4 the other; pooled mean 10 / 6, and not
    # (0 + 2) / 2, the mean of the two means.
    point, row = np.zeros((5, 1, 1), bool), np.ones((5, 1, 1), bool)
    point[0] = True
    assert score(point, row, np.eye(4)).assd_mm == pytest.approx(10 / 6)
    assert score(point, row, np.eye(4)).hd95_mm == pytest.approx(3.8)  # linear between ranks: 3 + 0.8


def test_an_empty_mask_has_no_distance_and_never_zero() -> None:
    """TRN-05."""
    nothing, something = np.zeros((24, 24, 24), bool), cube((1, 1, 1))
    for found in (score(nothing, something, np.eye(4)), score(something, nothing, np.eye(4))):
        assert (found.dice, found.jaccard) == (0, 0)
        assert all(math.isnan(v) for v in (found.hd95_mm, found.assd_mm, found.asd_mm))


def test_nothing_to_find_and_nothing_found_has_no_figure_at_all() -> None:
    nothing = np.zeros((4, 4, 4), bool)
    found = score(nothing, nothing, np.eye(4))
    assert all(math.isnan(getattr(found, metric)) for metric in METRICS)
    assert (found.prediction_ml, found.reference_ml) == (0, 0)


@given(pairs(), SPACINGS)
@settings(deadline=None, max_examples=80)
def test_distances_are_those_of_brute_force(masks: tuple[Mask, Mask], spacing: tuple[float, float, float]) -> None:
    """TRN-05."""
    first, second = masks
    affine = affine_of(spacing)
    there, back = surface_distances(first, second, affine)
    if first.any() and second.any():
        np.testing.assert_allclose(np.sort(there), brute_distances(first, second, affine), atol=1e-9)
        np.testing.assert_allclose(np.sort(back), brute_distances(second, first, affine), atol=1e-9)
    else:
        assert there.size == back.size == 0


@given(pairs())
@settings(deadline=None, max_examples=60)
def test_a_sheared_grid_is_measured_in_world_coordinates(masks: tuple[Mask, Mask]) -> None:
    first, second = masks
    if not (first.any() and second.any()):
        return
    affine = affine_of((0.8, 0.8, 2.0))
    affine[1, 2] = 0.7  # a gantry tilt of 19 degrees
    there, back = surface_distances(first, second, affine)
    np.testing.assert_allclose(np.sort(there), brute_distances(first, second, affine), atol=1e-9)
    np.testing.assert_allclose(np.sort(back), brute_distances(second, first, affine), atol=1e-9)


@given(pairs(), SPACINGS)
@settings(deadline=None, max_examples=100)
def test_bounds_and_symmetry_hold(masks: tuple[Mask, Mask], spacing: tuple[float, float, float]) -> None:
    first, second = masks
    found, swapped = (score(a, b, affine_of(spacing)) for a, b in ((first, second), (second, first)))
    for metric in ("dice", "jaccard", "hd95_mm", "assd_mm"):
        assert getattr(found, metric) == pytest.approx(getattr(swapped, metric), nan_ok=True)
    if not math.isnan(found.dice):
        assert 0 <= found.jaccard <= found.dice <= 1
        assert found.jaccard == pytest.approx(found.dice / (2 - found.dice))
    if not math.isnan(found.hd95_mm):
        there, back = surface_distances(first, second, affine_of(spacing))
        assert 0 <= found.hd95_mm <= max(there.max(), back.max()) + 1e-9


@given(pairs(), SPACINGS, st.permutations([0, 1, 2]), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_the_order_and_direction_of_axes_do_not_matter(
    masks: tuple[Mask, Mask], spacing: tuple[float, float, float], order: list[int], flips: int
) -> None:
    first, second = masks
    mirrored = tuple(k for k in range(3) if flips >> k & 1)
    moved = [np.flip(np.transpose(m, order), mirrored) for m in masks]
    same(
        score(first, second, affine_of(spacing)), score(moved[0], moved[1], np.diag([*(spacing[k] for k in order), 1]))
    )


def test_an_oblique_grid_is_measured_as_it_lies() -> None:
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() @ np.diag([0.7, 1.2, 2.5])
    masks = cube((2, 3, 4)), cube((4, 3, 6), 7)
    same(score(*masks, turned), score(*masks, affine_of((0.7, 1.2, 2.5))))


def test_the_rim_of_the_image_belongs_to_the_surface() -> None:
    full = np.ones((4, 5, 6), bool)
    assert surface(full).sum() == 4 * 5 * 6 - 2 * 3 * 4


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(VolumeError, match="same shape"):
        score(np.ones((3, 3, 3), bool), np.ones((3, 3, 4), bool), np.eye(4))
    with pytest.raises(VolumeError, match="singular"):
        score(np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), np.diag([1.0, 1, 0, 1]))


@pytest.mark.parametrize("seed", range(6))
def test_distances_are_those_of_monai(seed: int) -> None:
    metrics = pytest.importorskip("monai.metrics", reason="MONAI comes with the train extra")
    torch = pytest.importorskip("torch")
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    smooth = [gaussian_filter(rng.normal(size=(30, 26, 22)), 2.5) for _ in range(2)]
    first, second = smooth[0] > 0.02, (smooth[0] + 0.3 * smooth[1]) > 0.02
    spacing = (0.7, 1.0, 2.5)
    a, b = (torch.from_numpy(m[None, None]) for m in (first, second))
    options = {"include_background": True, "spacing": spacing}
    found = score(first, second, affine_of(spacing))
    hd95 = metrics.compute_hausdorff_distance(a, b, percentile=95, **options).item()
    assd = metrics.compute_average_surface_distance(a, b, symmetric=True, **options).item()
    asd = metrics.compute_average_surface_distance(a, b, symmetric=False, **options).item()
    assert found.hd95_mm == pytest.approx(hd95, rel=1e-5)
    hd = metrics.compute_hausdorff_distance(a, b, **options).item()
    assert found.hd_mm == pytest.approx(hd, rel=1e-5)
    assert found.hd_mm > found.hd95_mm
    counts = metrics.get_confusion_matrix(a.float(), b.float(), include_background=True)
    for name in ("precision", "recall"):
        expected = metrics.compute_confusion_matrix_metric(name, counts).item()
        assert getattr(found, name) == pytest.approx(expected)
    assert found.assd_mm == pytest.approx(assd, rel=1e-5)
    assert found.asd_mm == pytest.approx(asd, rel=1e-5)
    assert found.dice == pytest.approx(metrics.compute_dice(a.float(), b.float(), include_background=True).item())


def test_precision_and_recall_of_one_scan_make_its_dice_and_those_of_several_do_not() -> None:
    far = [score(cube((3, 3, 3)), cube((3 + k, 3, 3), side), affine_of((1, 1, 1))) for k, side in ((1, 6), (3, 8))]
    for found in far:
        assert f1_of_means(found.precision, found.recall) == pytest.approx(found.dice)
    means = [float(np.mean([getattr(found, name) for found in far])) for name in ("precision", "recall", "dice")]
    assert abs(f1_of_means(means[0], means[1]) - means[2]) > 1e-3
    assert f1_of_means(0.0, 0.0) == 0.0


def test_precision_and_recall_of_empty_masks() -> None:
    nothing, something = cube((3, 3, 3)) & False, cube((3, 3, 3))
    found = score(nothing, something, affine_of((1, 1, 1)))
    assert math.isnan(found.precision) and found.recall == 0.0 and math.isnan(found.hd_mm)
    found = score(something, nothing, affine_of((1, 1, 1)))
    assert found.precision == 0.0 and math.isnan(found.recall)
