"""Registration finds known displacements, in mm and whatever the voxels are, and repeats itself bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.registration import (
    RegistrationScan,
    affine_transform,
    identity_transform,
    inverse_inconsistency,
    local_mean,
    log_strain,
    prepare_scan,
    register,
    to_sitk_image,
    warp,
    working_spacing,
)

Triple = tuple[float, float, float]


def blob(
    shape: tuple[int, int, int], spacing: Triple, centre: Triple, radii: Triple = (9.0, 12.0, 8.0)
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An ellipsoid with a bright core, in a body that ends before the scan does; values and mask."""
    axes = [(np.arange(n) - (n - 1) / 2.0) * mm for n, mm in zip(shape, spacing, strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    away = np.sqrt((((at - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(axis=0))
    texture = 0.2 * np.sin(at[0] / 5.0) * np.cos(at[1] / 6.0) * np.cos(at[2] / 4.0)
    return (1.5 * (away < 1) + 1.0 * (away < 0.5) + texture).astype(np.float32), (away < 1).astype(np.float32)


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    one, other = a >= 0.5, b >= 0.5
    return float(2.0 * (one & other).sum() / (one.sum() + other.sum()))


def scans_of(
    fixed: tuple[NDArray[np.float32], Triple], moving: tuple[NDArray[np.float32], Triple]
) -> tuple[RegistrationScan, RegistrationScan]:
    side = working_spacing([fixed[0].shape, moving[0].shape], [fixed[1], moving[1]])
    return prepare_scan(*fixed, side), prepare_scan(*moving, side)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 48, 36), (1.0, 1.0, 1.0)), ((40, 48, 12), (1.0, 1.0, 3.0)), ((20, 48, 36), (2.0, 1.0, 1.0))],
)
def test_an_organ_that_moved_and_grew_is_found_whatever_the_voxels_are(
    shape: tuple[int, int, int], spacing: Triple
) -> None:
    image, mask = blob(shape, spacing, (4.0, -3.0, 2.0), (11.0, 11.0, 9.0))
    other, outlined = blob((40, 48, 36), (1.0, 1.0, 1.0), (-2.0, 2.0, -1.0))
    fixed, moving = scans_of((image, spacing), (other, (1.0, 1.0, 1.0)))
    seen = to_sitk_image(outlined, (1.0, 1.0, 1.0))
    before = overlap(warp(seen, fixed.own, identity_transform()), mask)
    after = overlap(warp(seen, fixed.own, register(fixed, moving)), mask)
    assert before < 0.75
    assert after > 0.9


def test_other_brightness_contrast_and_a_bias_field_change_little() -> None:
    image, mask = blob((40, 48, 36), (1.0, 1.0, 1.0), (4.0, -3.0, 2.0))
    other, outlined = blob((40, 48, 36), (1.0, 1.0, 1.0), (-1.0, 2.0, -1.0))
    bias = np.linspace(0.6, 1.4, 40, dtype=np.float32)[:, None, None]
    fixed, moving = scans_of((image * 3.0 * bias + 5.0, (1.0, 1.0, 1.0)), (other, (1.0, 1.0, 1.0)))
    found = warp(to_sitk_image(outlined, (1.0, 1.0, 1.0)), fixed.own, register(fixed, moving))
    assert overlap(found, mask) > 0.88


def test_the_way_there_and_back_leads_near_the_start_and_a_scan_of_something_else_does_not() -> None:
    image, _ = blob((40, 48, 36), (1.0, 1.0, 1.0), (3.0, -2.0, 1.0))
    other, _ = blob((40, 48, 36), (1.0, 1.0, 1.0), (-1.0, 2.0, -1.0))
    noise = np.random.default_rng(0).normal(size=(40, 48, 36)).astype(np.float32)
    away = {}
    for name, against in (("organ", other), ("noise", noise)):
        fixed, moving = scans_of((image, (1.0, 1.0, 1.0)), (against, (1.0, 1.0, 1.0)))
        away[name] = inverse_inconsistency(register(fixed, moving), register(moving, fixed), fixed)
    assert away["organ"] < 1.0
    assert away["noise"] > 2 * away["organ"]


def test_it_repeats_itself_bit_for_bit_and_large_scans_are_worked_on_coarsely() -> None:
    image, _ = blob((40, 48, 36), (1.0, 1.0, 1.0), (3.0, -2.0, 1.0))
    other, outlined = blob((40, 48, 36), (1.0, 1.0, 1.0), (-1.0, 2.0, -1.0))
    fixed, moving = scans_of((image, (1.0, 1.0, 1.0)), (other, (1.0, 1.0, 1.0)))
    seen = to_sitk_image(outlined, (1.0, 1.0, 1.0))
    once, again = (warp(seen, fixed.own, register(fixed, moving)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert working_spacing([(512, 512, 400)], [(0.8, 0.8, 1.5)]) == pytest.approx((409.6**2 * 600 / 400_000) ** (1 / 3))
    assert working_spacing([(35, 50, 36)], [(1.0, 1.0, 2.0)]) == 1.0


def test_empty_scans_and_scans_of_a_slice_do_not_end_in_an_error() -> None:
    for shape in ((24, 24, 24), (24, 24, 1)):
        flat = np.zeros(shape, np.float32)
        fixed, moving = scans_of((flat, (1.0, 1.0, 1.0)), (flat + 2.0, (1.0, 1.0, 1.0)))
        found = warp(moving.own, fixed.own, register(fixed, moving))
        assert found.shape == shape
        assert np.isfinite(found).all()


def test_a_local_mean_is_a_gaussian_in_millimetres() -> None:
    point = np.zeros((31, 31, 16), np.float32)
    point[15, 15, 8] = 1.0
    found = local_mean(point, (1.0, 1.0, 2.0), 3.0)
    assert found.sum() == pytest.approx(1.0, abs=0.02)
    assert found[15 + 4, 15, 8] == pytest.approx(found[15, 15, 8 + 2], rel=0.2), "4 mm along either axis"
    assert found[15 + 3, 15, 8] / found[15, 15, 8] == pytest.approx(np.exp(-0.5), rel=0.05)


def test_a_stretch_is_found_and_a_shift_is_none() -> None:
    moved, grown = (blob((40, 48, 36), (1.0, 1.0, 1.0), (2.0, -1.0, 1.0), r)[0] for r in ((9, 12, 8), (9, 15, 8)))
    image, _ = blob((40, 48, 36), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    fixed, shifted, longer = (prepare_scan(a, (1.0, 1.0, 1.0), 1.0) for a in (image, moved, grown))
    assert np.abs(log_strain(affine_transform(fixed, shifted))).max() < 0.05
    # Its axes are z, y, x; the organ is 15 / 12 as long along y.
    assert log_strain(affine_transform(fixed, longer))[3] == pytest.approx(np.log(15 / 12), abs=0.06)
