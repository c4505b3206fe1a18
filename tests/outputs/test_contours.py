"""Polygons around pixels enclose exactly those pixels, for any mask, by two fillers that know nothing of each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from semiseg.collection.contour_sets import Contour, fill_contours
from semiseg.outputs.contours import INSET, mask_contours

CENTRES = np.stack(np.meshgrid(np.arange(9), np.arange(7), indexing="ij"), axis=-1).reshape(-1, 2)


def masks() -> st.SearchStrategy[NDArray[np.bool_]]:
    """Of any density: dense ones have holes."""
    values = st.lists(st.integers(0, 99), min_size=63, max_size=63)
    return st.tuples(values, st.integers(10, 90)).map(lambda drawn: np.array(drawn[0]).reshape(9, 7) < drawn[1])


@settings(max_examples=200)
@given(mask=masks())
def test_filling_the_polygons_gives_the_mask_back(mask: NDArray[np.bool_]) -> None:
    polygons = mask_contours(mask)
    np.testing.assert_array_equal(fill_contours([Contour(p) for p in polygons], (9, 7)).mask, mask)
    for polygon in polygons:
        assert len(polygon) >= 4
        assert np.allclose(np.abs(polygon % 1 - 0.5), INSET), "corners lie between pixels, and not exactly between"


@settings(max_examples=200)
@given(mask=masks())
def test_a_filler_that_rounds_corners_to_pixels_and_paints_the_boundary_gives_the_mask_too(
    mask: NDArray[np.bool_],
) -> None:
    """As rt-utils does with OpenCV; a corner exactly between two pixels would go to either of them."""
    painted = np.zeros((9, 7), dtype=bool)
    for polygon in mask_contours(mask):
        canvas = Image.new("1", (9, 7))
        corners = [(int(x), int(y)) for x, y in np.rint(polygon)]
        ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=1)
        painted |= np.asarray(canvas).T
    np.testing.assert_array_equal(painted, mask)


def test_a_polygon_is_as_large_as_its_pixels_less_a_hair() -> None:
    (curve,) = mask_contours(np.ones((30, 20), dtype=bool))
    x, y = curve.T
    area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
    assert area == pytest.approx((30 - 2 * INSET) * (20 - 2 * INSET))
    assert area > 0.999 * 600


@settings(max_examples=200)
@given(mask=masks())
def test_each_region_is_one_polygon_and_no_other_filler_disagrees(mask: NDArray[np.bool_]) -> None:
    inside = np.zeros(63, dtype=int)
    for polygon in mask_contours(mask):
        # Agg fills closed paths by the non-zero rule: a hole walked the other way round is a hole there too.
        inside += Polygon(np.vstack([polygon, polygon[:1]]), closed=True).contains_points(CENTRES)
    np.testing.assert_array_equal(inside.reshape(9, 7), mask.astype(int))


def test_a_ring_is_one_curve_through_a_channel_of_no_width() -> None:
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    (curve,) = mask_contours(ring)
    steps = np.abs(np.diff(np.vstack([curve, curve[:1]]), axis=0))
    assert len(curve) == 4 + 4 + 1 + 2, "the outer corners, the hole's with the first twice, the channel's other end"
    assert (steps.sum(axis=1) > 0).all()
    assert (steps.min(axis=1) == 0).all(), "no side, and no channel, runs across a pixel"


@pytest.mark.parametrize(("mask", "corners"), [([[1]], 4), ([[1, 1], [1, 1]], 4), ([[1, 0], [1, 1]], 6)])
def test_there_are_no_points_on_straight_lines(mask: list[list[int]], corners: int) -> None:
    (curve,) = mask_contours(np.array(mask, dtype=bool))
    assert len(curve) == corners
