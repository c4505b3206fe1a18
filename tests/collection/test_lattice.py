"""A label with the scan's voxels in another order is put in the scan's order; any other label is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.collection.grid_matching import reorder_to_grid
from semiseg.errors import VolumeError
from semiseg.volumes.volume import Volume, reorient
from tests.grids import AXIS_ORIENTATIONS, make_affine, numbered_volume

SHAPE = (5, 6, 7)
tilts = st.tuples(*[st.floats(-44, 44)] * 3)
Triple = tuple[float, float, float]


@given(st.sampled_from(AXIS_ORIENTATIONS), st.integers(0, 47), tilts)
def test_every_order_of_axes_comes_back_voxel_for_voxel(
    axcodes: str, turn: int, tilt: tuple[float, float, float]
) -> None:
    scan = numbered_volume(SHAPE, make_affine(axcodes, tilt=tilt))
    label = Volume(*reorient(scan.array, scan.affine, AXIS_ORIENTATIONS[turn]))
    np.testing.assert_array_equal(reorder_to_grid(scan, label), scan.array)


def test_rounding_of_the_affine_is_forgiven_and_more_is_not() -> None:
    scan = numbered_volume(SHAPE, make_affine("LPS", tilt=(11, 7, -5)))
    rounded = Volume(scan.array, np.round(scan.affine, 3))
    np.testing.assert_array_equal(reorder_to_grid(scan, rounded), scan.array)
    aside = scan.affine.copy()
    aside[:3, 3] += scan.affine[:3, 0] * 0.3
    with pytest.raises(VolumeError, match=r"up to 0\.30 of a voxel away"):
        reorder_to_grid(scan, Volume(scan.array, aside))


def test_another_spacing_turn_or_extent_is_refused_by_name() -> None:
    scan = numbered_volume(SHAPE, make_affine("LPS"))
    with pytest.raises(VolumeError, match=r"measure 1.5 x 0.75 x 6 mm and the scan's 1.5 x 0.75 x 3 mm"):
        reorder_to_grid(scan, Volume(scan.array, scan.affine @ np.diag([1, 1, 2, 1])))
    with pytest.raises(VolumeError, match="axes are rotated"):
        reorder_to_grid(scan, Volume(scan.array, make_affine("LPS", tilt=(0, 0, 12))))
    with pytest.raises(VolumeError, match=r"reaches from voxel \[1, 0, 0\] to \[5, 5, 6\]"):
        shifted = scan.affine.copy()
        shifted[:3, 3] += scan.affine[:3, 0]
        reorder_to_grid(scan, Volume(scan.array, shifted))
    with pytest.raises(VolumeError, match="it has 5 x 6 x 6 voxels, the scan 5 x 6 x 7"):
        reorder_to_grid(scan, Volume(scan.array[:, :, :6], scan.affine))
