"""Contours enclose the pixels whose centres lie in them: areas of shapes that are known, holes, and no gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.collection.polygons import fill_even_odd

SIZE = (61, 47)


def circle(centre: tuple[float, float], radius: float, points: int = 400) -> NDArray[np.float64]:
    angle = np.arange(points) * 2 * math.pi / points
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)])


def square(left: float, top: float, side: float) -> NDArray[np.float64]:
    return np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]])


@pytest.mark.parametrize("radius", [3.3, 9.7, 17.2])
def test_a_circle_encloses_the_centres_that_are_nearer_than_its_radius(radius: float) -> None:
    inside = fill_even_odd([circle((30.2, 22.7), radius, 5000)], SIZE)
    i, j = np.indices(SIZE)
    np.testing.assert_array_equal(inside, np.hypot(i - 30.2, j - 22.7) < radius)


def test_areas_of_circles_come_out_right_on_average() -> None:
    rng = np.random.default_rng(4)
    centres = rng.uniform(18, 27, (200, 2))
    areas = [int(fill_even_odd([circle((x, y), 11.5)], SIZE).sum()) for x, y in centres]
    assert np.mean(areas) == pytest.approx(math.pi * 11.5**2, rel=2e-3)


def test_a_contour_within_another_is_a_hole_and_one_within_that_is_an_island() -> None:
    rings = [circle((30, 23), r, 3000) for r in (18.1, 12.3, 5.2)]
    inside = fill_even_odd(rings, SIZE)
    i, j = np.indices(SIZE)
    distance = np.hypot(i - 30, j - 23)
    np.testing.assert_array_equal(inside, ((distance < 18.1) & (distance >= 12.3)) | (distance < 5.2))


def test_a_keyhole_cuts_its_hole_and_its_channel_takes_nothing() -> None:
    outer, inner = square(4.5, 4.5, 30), square(14.5, 14.5, 6)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    expected = np.zeros(SIZE, dtype=bool)
    expected[5:35, 5:35] = True
    expected[15:21, 15:21] = False
    np.testing.assert_array_equal(fill_even_odd([keyhole], SIZE), expected)


def test_a_contour_through_pixel_centres_keeps_its_left_and_upper_edge() -> None:
    inside = fill_even_odd([square(10, 12, 5)], SIZE)
    expected = np.zeros(SIZE, dtype=bool)
    expected[10:15, 12:17] = True
    np.testing.assert_array_equal(inside, expected)


def test_rounding_does_not_decide_about_centres_on_a_contour() -> None:
    rng = np.random.default_rng(0)
    expected = fill_even_odd([square(10, 12, 5)], SIZE)
    for _ in range(20):
        shaken = square(10, 12, 5) + rng.uniform(-2e-5, 2e-5, (4, 2))
        np.testing.assert_array_equal(fill_even_odd([shaken], SIZE), expected)


def test_what_lies_beyond_the_picture_is_cut_off() -> None:
    inside = fill_even_odd([square(-100, -100, 1000)], SIZE)
    assert inside.all()
    half = fill_even_odd([square(30.5, -50.5, 500)], SIZE)
    np.testing.assert_array_equal(half, np.indices(SIZE)[0] > 30)
    assert not fill_even_odd([square(-40, -40, 30), square(90, 3, 5)], SIZE).any()


@pytest.mark.parametrize("points", [0, 1, 2])
def test_fewer_than_three_points_enclose_nothing(points: int) -> None:
    assert not fill_even_odd([square(3, 4, 9)[[0, 2]][:points]], SIZE).any()
    assert not fill_even_odd([], SIZE).any()


polygons = st.lists(st.tuples(st.floats(-5, 66), st.floats(-5, 52)), min_size=3, max_size=12).map(np.array)


@settings(max_examples=60, deadline=None)
@given(polygons)
def test_the_rule_agrees_with_counting_crossings_pixel_by_pixel(points: NDArray[np.float64]) -> None:
    snapped = np.round(points, 4)
    inside = fill_even_odd([points], SIZE)
    for i, j in np.random.default_rng(1).integers(0, SIZE, (60, 2)).tolist():
        crossings = 0
        for (x0, y0), (x1, y1) in zip(snapped, np.roll(snapped, -1, axis=0), strict=True):
            if (y0 <= j) != (y1 <= j):
                (xa, ya), (xb, yb) = ((x0, y0), (x1, y1)) if y0 < y1 else ((x1, y1), (x0, y0))
                crossings += xa + (j - ya) * (xb - xa) / (yb - ya) <= i
        assert inside[i, j] == bool(crossings % 2)


@settings(max_examples=60, deadline=None)
@given(st.floats(5, 50), st.floats(5, 40), st.floats(-7, 7), st.floats(-7, 7))
def test_polygons_that_share_an_edge_neither_overlap_nor_leave_a_gap(x: float, y: float, dx: float, dy: float) -> None:
    middle = np.array([[x, y], [x + dx, y + dy]])
    hull = np.array([[-1.0, -1.0], [62.0, -1.0], [62.0, 48.0], [-1.0, 48.0]])
    left = np.concatenate([hull[[3, 0]], middle])
    right = np.concatenate([middle[::-1], hull[[1, 2]]])
    rest = [np.array([hull[0], hull[1], middle[0]]), np.array([hull[2], hull[3], middle[1]])]
    counts = sum(fill_even_odd([part], SIZE).astype(int) for part in (left, right, *rest))
    together = fill_even_odd([left, right, *rest], SIZE)
    np.testing.assert_array_equal(counts % 2 == 1, together)
    assert together.all()
