"""Two grids over one box: what is where stays where, whatever the number of voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from semiseg.bundle import resample
from semiseg.bundle.resample import resample_image, resample_labels, resample_mask, resampled_affine, resampled_shape
from tests.grids import dice, ellipsoid, make_affine, to_world

shapes = st.tuples(*[st.integers(1, 9)] * 3)


def corners(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The millimetres of a box's eight corners: voxel edges, not centres."""
    unit = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(-1, 3)
    return to_world(affine, unit * np.asarray(shape) - 0.5)


@given(shapes, shapes, st.tuples(*[st.floats(-40, 40)] * 3))
def test_both_grids_cover_the_same_box(
    shape: tuple[int, int, int], new: tuple[int, int, int], tilt: tuple[float, float, float]
) -> None:
    affine = make_affine("LSA", (0.7, 1.3, 2.9), tilt)
    found = resampled_affine(affine, shape, new)
    np.testing.assert_allclose(corners(found, new), corners(affine, shape), atol=1e-9)
    np.testing.assert_allclose(resampled_affine(found, new, shape), affine, atol=1e-9)


@settings(deadline=None)
@given(shapes, shapes, st.integers(0, 1000))
def test_a_straight_line_is_read_where_the_affine_says(
    shape: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    slopes = np.random.default_rng(seed).normal(size=3)
    affine = np.diag([1.0, 2.0, 0.5, 1.0])
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    found = resample_image(to_world(affine, grid) @ slopes, new)
    new_grid = np.stack(np.meshgrid(*[np.arange(n) for n in new], indexing="ij"), axis=-1)
    # Beyond the outermost centres the border value holds.
    inside = np.clip(
        to_world(resampled_affine(affine, shape, new), new_grid), 0, to_world(affine, np.asarray(shape) - 1)
    )
    assert found.shape == new and found.dtype == np.float32
    np.testing.assert_allclose(found, inside @ slopes, atol=1e-4)


@settings(deadline=None)
@given(shapes, shapes, st.integers(0, 255))
def test_a_constant_stays_what_it_is(shape: tuple[int, int, int], new: tuple[int, int, int], value: int) -> None:
    np.testing.assert_array_equal(resample_image(np.full(shape, value), new), np.full(new, value))
    found = resample_labels(np.full(shape, value, np.uint8), new)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.full(new, value))


@settings(deadline=None, max_examples=50)
@given(shapes, shapes, st.integers(0, 1000))
def test_no_label_appears_that_was_not_there(shape: tuple[int, int, int], new: tuple[int, int, int], seed: int) -> None:
    # Interpolating the label values themselves would invent a 3 between 1 and 5.
    labels = np.random.default_rng(seed).choice(np.asarray([0, 1, 5, 200], np.uint8), shape)
    assert set(np.unique(resample_labels(labels, new))) <= set(np.unique(labels))


@pytest.mark.parametrize("factor", [2, 3])
def test_labels_come_back_from_a_finer_grid_unchanged(factor: int) -> None:
    labels = np.random.default_rng(factor).integers(0, 4, (5, 6, 7), dtype=np.uint8)
    fine = resample_labels(labels, tuple(factor * n for n in labels.shape))
    centre = fine[factor // 2 :: factor, factor // 2 :: factor, factor // 2 :: factor]
    if factor % 2:  # a voxel's middle third has the voxel's own centre
        np.testing.assert_array_equal(centre, labels)
    body = ellipsoid((16, 16, 16), (6, 5, 6.5)).astype(np.uint8)
    back = resample_labels(resample_labels(body, tuple(factor * n for n in body.shape)), body.shape)
    assert dice(back > 0, body > 0) > 0.98


def test_a_voxel_belongs_to_a_mask_if_more_than_half_of_it_does() -> None:
    mask = np.asarray([False, True]).reshape(2, 1, 1)
    np.testing.assert_array_equal(resample_mask(mask, (4, 1, 1)).ravel(), [False, False, True, True])
    np.testing.assert_array_equal(resample_mask(mask, (1, 1, 1)).ravel(), [False])


@settings(deadline=None, max_examples=80)
@given(shapes, shapes, st.integers(0, 1000), st.sampled_from([7, 100, 1 << 24]))
def test_it_is_the_largest_of_scipys_interpolated_shares(
    shape: tuple[int, int, int], new: tuple[int, int, int], seed: int, chunk: int
) -> None:
    """However small the parts in which the new grid is decided."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in (1, 2, 9):  # boxes that lie apart, touch or cover each other
        low = [int(rng.integers(0, n)) for n in shape]
        labels[tuple(slice(a, a + int(rng.integers(1, n + 1))) for a, n in zip(low, shape, strict=True))] = label
    zoom = np.asarray(shape) / np.asarray(new)
    shares = np.stack(
        [
            ndimage.affine_transform(
                (labels == label).astype(np.float64), zoom, (zoom - 1) / 2, new, order=1, mode="nearest"
            )
            for label in (0, 1, 2, 9)
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "CHUNK_VOXELS", chunk)
        found = resample_labels(labels, new)
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5  # the others are ties, which a test above decides
    np.testing.assert_array_equal(found[clear], np.asarray([0, 1, 2, 9])[shares.argmax(axis=0)][clear])


def test_a_tie_goes_to_the_smaller_label() -> None:
    labels = np.asarray([7, 3, 0, 7], np.uint8).reshape(4, 1, 1)
    np.testing.assert_array_equal(resample_labels(labels, (2, 1, 1)).ravel(), [3, 0])


def test_the_boundary_between_two_segments_stays_straight_on_a_finer_grid() -> None:
    # Two halves of a plane cut at an angle: class by class, the finer boundary is off by less than half a coarse voxel.
    x, y = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    labels = np.repeat((1 + (x + 2 * y > 17))[..., None], 2, axis=2).astype(np.uint8)
    fine = resample_labels(labels, (48, 48, 2))[..., 0]
    u, v = np.meshgrid((np.arange(48) + 0.5) / 4 - 0.5, (np.arange(48) + 0.5) / 4 - 0.5, indexing="ij")
    # The distance in coarse voxels to the line midway between the last 1 and the first 2.
    distance = (u + 2 * v - 17.5) / np.sqrt(5)
    clear = np.abs(distance) > 0.5
    np.testing.assert_array_equal(fine[clear] == 2, distance[clear] > 0)


@given(shapes, st.tuples(*[st.floats(0.1, 9)] * 3), st.tuples(*[st.floats(0.1, 99)] * 3))
def test_the_new_shape_is_the_nearest_and_never_empty(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target: tuple[float, float, float]
) -> None:
    found = resampled_shape(shape, spacing, target)
    for n, new, s, t in zip(shape, found, spacing, target, strict=True):
        assert new >= 1 and (new == 1 or abs(new - n * s / t) <= 0.5)


def test_the_same_shape_is_passed_through_untouched() -> None:
    image = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    assert resample_image(image, (3, 4, 5)) is image
    labels = np.zeros((3, 4, 5), np.uint8)
    assert resample_labels(labels, (3, 4, 5)) is labels
