"""Where a patch is cut, how it is turned, and how its values are bent: what is drawn and what is made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from trainer.intensity_augmentation import augment_intensities
from trainer.recipe import Augmentation
from trainer.spatial_augmentation import (
    PatchGeometry,
    Symmetry,
    draw_deformation,
    draw_rotation_and_zoom,
    draw_symmetry,
    place_patch,
    read_region,
    resample_patch,
)

PATCH = (8, 8, 8)


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
        turn = None if scale is None else draw_rotation_and_zoom(Augmentation(scale=scale), 2, random)
        voxel = tuple(int(random.integers(n)) for n in shape) if demanded else None
        cut = place_patch(shape, PATCH, turn, (1.0, 1.0, 2.0), voxel, random)  # type: ignore[arg-type]
        corners = (cut.matrix @ np.asarray([[0, 0, 0, 1], [7, 7, 7, 1]]).T)[:3]
        assert (corners > -1e-9).all()
        assert (corners[:, 1] <= np.asarray(shape) - 1 + 1e-9).all()


def test_patches_reach_every_voxel_of_the_scan() -> None:
    starts = {
        tuple(place_patch((10, 9, 8), PATCH, None, (1.0, 1.0, 1.0), None, np.random.default_rng(k)).matrix[:3, 3])
        for k in range(200)
    }
    assert starts == {(x, y, 0) for x in (0, 1, 2) for y in (0, 1)}


def test_a_plain_cut_is_a_slice_of_the_array() -> None:
    array = np.random.default_rng(0).normal(size=(2, 12, 13, 14)).astype(np.float32)
    cut = place_patch((12, 13, 14), PATCH, None, (1.0, 1.0, 1.0), (5, 6, 7), np.random.default_rng(1))
    x, y, z = (int(v) for v in cut.matrix[:3, 3])
    patch, _ = resample_patch(read_region(array, (), cut, PATCH), PATCH, "edge")
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
        cut = place_patch(shape, patch, draw_rotation_and_zoom(wild, 2, random), (1.0, 1.0, 3.0), (3, 4, 5), random)
        matrix, offset = cut.matrix[:3, :3], cut.matrix[:3, 3]
        smooth = ndimage.affine_transform(array, matrix, offset, output_shape=patch, order=1, mode=mode)
        image, labels = resample_patch(read_region(array[None], [segments], cut, patch), patch, padding)
        assert np.abs(image[0].numpy() - smooth).max() < 1e-4
        nearest = ndimage.affine_transform(segments, matrix, offset, output_shape=patch, order=0, mode=mode)
        assert (labels[0].numpy() != nearest).mean() < 0.005, "but for ties between two voxels"


def test_a_turn_is_a_rotation_of_the_body_also_where_slices_are_thick() -> None:
    spacing = np.array([0.5, 1.0, 4.0])
    wild = Augmentation(scale=(0.8, 1.2), rotate=180, rotate_out_of_plane=60)
    for seed in range(5):
        random = np.random.default_rng(seed)
        rotation, zoom = draw_rotation_and_zoom(wild, 2, random) or (np.eye(3), 1.0)
        cut = place_patch((40, 40, 20), (8, 8, 8), (rotation, zoom), tuple(spacing), None, random)
        in_mm = np.diag(spacing) @ cut.matrix[:3, :3] @ np.diag(1 / spacing) * zoom
        assert np.allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-9)
        assert np.allclose(in_mm, rotation)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_by_default_no_patch_is_turned_out_of_its_slices(axis: int) -> None:
    for seed in range(10):
        turn = draw_rotation_and_zoom(Augmentation(rotate=90), axis, np.random.default_rng(seed))
        assert turn is not None
        rotation, _ = turn
        assert rotation[axis, axis] == pytest.approx(1)
        others = [a for a in range(3) if a != axis]
        assert np.allclose(rotation[axis, others], 0)
        assert np.allclose(rotation[others, axis], 0)
        assert abs(rotation[others[0], others[1]]) > 1e-3
    leaning = draw_rotation_and_zoom(Augmentation(rotate_out_of_plane=20), axis, np.random.default_rng(0))
    assert leaning is not None
    assert abs(leaning[0][axis, axis] - 1) > 1e-3


def test_the_default_augmentation_zooms_all_axes_alike_between_nine_and_eleven_tenths() -> None:
    zooms = []
    for seed in range(200):
        turn = draw_rotation_and_zoom(Augmentation(), 2, np.random.default_rng(seed))
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
    assert not any(s.axes or s.quarter_turns for s in drawn())
    turned = drawn(quarter_turns=1.0, slice_axis=1)
    assert {s.quarter_turns for s in turned} == {0, 1, 2, 3}
    assert {s.plane for s in turned} == {(0, 2)}
    assert {s.quarter_turns for s in drawn((8, 6, 8), quarter_turns=1.0)} == {0, 2}, (
        "what is not square stays as long as it was"
    )
    assert 100 < sum(s.quarter_turns == 0 for s in drawn(quarter_turns=0.9)) < 160


@given(st.floats(0.3, 3.0), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_gamma_keeps_the_range_and_the_order_of_the_values(exponent: float, seed: int) -> None:
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 4, 4, 4)).astype(np.float32))
    bent = augment_intensities(
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
    assert torch.equal(augment_intensities(image, Augmentation(gamma_probability=1.0), np.random.default_rng(0)), image)


def test_brightness_contrast_and_noise_stay_within_their_limits() -> None:
    image = torch.zeros((1, 16, 16, 16))
    chosen = Augmentation(gamma_probability=0, brightness=0.2, intensity_probability=1.0)
    shifts = [float(augment_intensities(image, chosen, np.random.default_rng(k)).max()) for k in range(50)]
    assert -0.2 <= min(shifts) < 0 < max(shifts) <= 0.2
    chosen = Augmentation(gamma_probability=0, contrast=0.3, intensity_probability=1.0)
    factors = [float(augment_intensities(image + 1, chosen, np.random.default_rng(k)).max()) for k in range(50)]
    assert 0.7 <= min(factors) < 1 < max(factors) <= 1.3
    chosen = Augmentation(gamma_probability=0, noise=0.5, intensity_probability=1.0)
    spreads = [float(augment_intensities(image, chosen, np.random.default_rng(k)).std()) for k in range(50)]
    assert 0 < max(spreads) < 0.52


# --- deformation, blur, resolution -----------------------------------------------------------------------------------


def test_a_deformation_is_the_b_spline_of_its_control_points() -> None:
    from scipy.interpolate import BSpline

    augmentation = Augmentation(elastic=5.0, elastic_probability=1.0, elastic_grid=8.0)
    spacing, patch = (1.0, 2.0, 0.5), (16, 12, 20)
    control = draw_deformation(augmentation, patch, spacing, np.random.default_rng(1))
    assert control is not None and control.shape == (3, 5, 6, 4)
    assert (np.abs(control) * np.asarray(spacing)[:, None, None, None]).max() <= 5.0
    array = np.arange(40.0 * 40 * 40).reshape(1, 40, 40, 40).astype(np.float32)
    shift = np.eye(4)
    shift[:3, 3] = 12
    box = read_region(array, (), PatchGeometry(shift, is_translation=True, control=control), patch)
    found, _ = resample_patch(box, patch, "edge")
    knots = [np.arange(-3.0, n + 1) for n in control.shape[1:]]
    at = [(np.arange(n) + 0.5) / n * (g - 3) for n, g in zip(patch, control.shape[1:], strict=True)]
    moved = control
    for axis in (1, 2, 3):
        moved = np.moveaxis(BSpline(knots[axis - 1], np.moveaxis(moved, axis, 0), 3)(at[axis - 1]), 0, axis)
    places = np.stack(np.meshgrid(*[np.arange(n) + 12.0 for n in patch], indexing="ij")) + moved
    expected = ndimage.map_coordinates(array[0], places, order=1, mode="nearest")
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=2.0)


def test_image_and_labels_are_deformed_alike_and_no_further_than_told() -> None:
    augmentation = Augmentation(affine=0.0, elastic=3.0, elastic_probability=1.0, elastic_grid=10.0)
    random = np.random.default_rng(3)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[12:28, 12:28, 12:28] = 1
    patch, moved = (32, 32, 32), 0
    for _ in range(5):
        control = draw_deformation(augmentation, patch, (1.0, 1.0, 1.0), random)
        shift = np.eye(4)
        shift[:3, 3] = 4
        box = read_region(labels[None].astype(np.float32), [labels], PatchGeometry(shift, True, control), patch)
        image, maps = resample_patch(box, patch, "edge")
        assert float((image[0] - maps[0]).abs().max()) <= 0.875 + 1e-4, "a corner counts an eighth and more"
        plain = labels[4:36, 4:36, 4:36]
        differs = maps[0].numpy() != plain
        moved += int(differs.sum())
        near = ndimage.distance_transform_edt(plain) + ndimage.distance_transform_edt(1 - plain)
        assert near[differs].max(initial=0) <= 3 * np.sqrt(3) + 1
    assert moved > 100


def test_without_a_word_no_random_number_is_drawn_for_what_is_new() -> None:
    """Runs of earlier versions are repeated bit for bit."""
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    assert draw_deformation(Augmentation(), (8, 8, 8), (1.0, 1.0, 1.0), one) is None
    assert one.random() == other.random()


def test_a_blur_is_scipys_and_a_low_resolution_loses_detail_and_no_brightness() -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 20, 18, 16)).astype(np.float32))
    blurred = augment_intensities(
        image, Augmentation(gamma_probability=0.0, blur=(0.8, 0.8), blur_probability=1.0), np.random.default_rng(1)
    )
    for channel in range(2):
        expected = ndimage.gaussian_filter(image[channel].numpy(), 0.8, mode="nearest", radius=3)
        np.testing.assert_allclose(blurred[channel].numpy(), expected, atol=1e-5)
    coarse = Augmentation(gamma_probability=0.0, low_resolution=(0.5, 0.5), low_resolution_probability=1.0)
    found = augment_intensities(image, coarse, np.random.default_rng(1))
    assert found.shape == image.shape
    assert float(found.std()) < 0.8 * float(image.std())
    ramp = torch.linspace(0, 1, 16).expand(1, 16, 16, 16)
    again = augment_intensities(ramp.contiguous(), coarse, np.random.default_rng(1))
    assert abs(float(again.mean() - ramp.mean())) < 0.05


def test_an_inverted_gamma_bends_bright_values_as_a_plain_one_bends_dark_ones() -> None:
    image = torch.linspace(0, 1, 64).reshape(1, 4, 4, 4)
    plain = Augmentation(gamma=(2.0, 2.0), gamma_probability=1.0)
    inverted = plain.model_copy(update={"gamma_inverted": 1.0})
    one = augment_intensities(image, plain, np.random.default_rng(0))
    other = augment_intensities(image, inverted, np.random.default_rng(0))
    torch.testing.assert_close(one, image**2)
    torch.testing.assert_close(other, 1 - (1 - image) ** 2)


def test_shares_of_voxels_above_one_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most 1"):
        Augmentation(low_resolution=(0.5, 1.5))
