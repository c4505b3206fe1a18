"""Two grids are one if no voxel lies more than a tenth of a voxel apart: one tolerance, by voxel size and extent."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.collection.grid_matching import reorder_to_grid
from semiseg.dataset.folder import grid_difference
from semiseg.errors import VolumeError
from semiseg.volumes.volume import GRID_TOLERANCE, Volume, corner_distance, same_grid
from tests.grids import make_affine

SHAPE = (40, 30, 20)


def volume(affine: np.ndarray) -> Volume:
    return Volume(np.broadcast_to(np.uint8(1), SHAPE), affine)


@pytest.mark.parametrize("spacing", [(0.05, 0.05, 0.1), (1.0, 1.0, 1.0), (0.8, 0.8, 5.0)])
@pytest.mark.parametrize(("share", "same"), [(0.0, True), (0.004, True), (0.09, True), (0.11, False), (1.0, False)])
def test_check_and_collect_agree_about_a_shift_of_a_share_of_a_voxel(
    spacing: tuple[float, float, float], share: float, same: bool
) -> None:
    """TRN-01."""
    affine = make_affine("LPS", spacing)
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ (share, 0, 0)
    assert (grid_difference(volume(affine), volume(shifted)) is None) == same
    try:
        reorder_to_grid(volume(affine), volume(shifted))
    except VolumeError:
        # A whole voxel beside is on the lattice and reaches beyond the scan.
        assert not same
    else:
        assert same


def test_four_micrometres_are_no_other_grid() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    other = affine.copy()
    other[0, 3] = 0.004
    assert grid_difference(volume(affine), volume(other)) is None


def test_a_wrong_spacing_adds_up_to_the_far_corner() -> None:
    affine, other = np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([1.004, 1.0, 1.0, 1.0])
    assert corner_distance(other, affine, SHAPE) == pytest.approx(39 * 0.004)
    assert not same_grid(other, affine, SHAPE)
    assert same_grid(other, affine, (20, 30, 20)) and GRID_TOLERANCE > 19 * 0.004
    assert not same_grid(other, affine)  # of 512 voxels, where nothing says how many


def test_what_is_no_grid_is_like_no_other() -> None:
    good = np.eye(4)
    for bad in (np.zeros((4, 4)), np.full((4, 4), np.nan)):
        assert not same_grid(good, bad, SHAPE) and corner_distance(good, bad, SHAPE) == float("inf")
