"""Points that were drawn through pixel centres, corners or edges are put back there; others stay where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.collection.contour_sets import Contour, fill_contours
from semiseg.collection.rounding import count_decimals, rounding_error, undo_rounding
from tests.collection.centre_contours import centre_contours, simplify_contour

BLOB = np.hypot(*(np.indices((40, 34)) - np.array([[[20.3]], [[15.9]]]))) < 11
BLOB[18:23, 14:17] = False


def affine(spacing: float, origin: tuple[float, float, float], degrees: float = 0.0) -> NDArray[np.float64]:
    """From pixels to mm; the columns are turned against the patient's x."""
    turn = math.radians(degrees)
    out = np.eye(4)
    out[:2, :2] = spacing * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    out[:3, 3] = origin
    return out


def read(
    contours: list[NDArray[np.float64]], to_mm: NDArray[np.float64], count: int, *, cut: bool = False
) -> list[Contour]:
    """Contours in pixels as they are read after they were written in mm with ``count`` decimals."""
    out = []
    to_index = np.linalg.inv(to_mm)
    for points in contours:
        mm = np.column_stack([points, np.zeros(len(points)), np.ones(len(points))]) @ to_mm.T[:, :3]
        mm = np.trunc(mm * 10**count) / 10**count if cut else np.round(mm, count)
        pixels = mm @ to_index[:3, :3].T + to_index[:3, 3]
        out.append(Contour(*undo_rounding(pixels[:, :2], rounding_error(mm, to_index))))
    return out


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([1, -20], 0),
        ([1.5, 2], 1),
        ([-24.75, 1000.05], 2),
        ([0.125], 3),
        ([1 / 3], 6),
        ([511.1234567], 6),
        ([0.1 + 0.2], 1),
    ],
)
def test_the_decimals_of_numbers(values: list[float], count: int) -> None:
    assert count_decimals(np.array(values, dtype=float)) == count


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 31.7])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("spacing", [0.683594, 0.9765625, 1.37, 3.1])
def test_contours_through_centres_give_their_pixels_back_with_few_decimals(
    spacing: float, count: int, degrees: float, cut: bool
) -> None:
    to_mm = affine(spacing, (-173.3216, 41.0137, -12.345678), degrees)
    contours = [simplify_contour(points) for points in centre_contours(BLOB)]
    if cut and count == 1 and spacing < 1:
        return  # a tenth of a mm is too much of such a pixel
    np.testing.assert_array_equal(fill_contours(read(contours, to_mm, count, cut=cut), BLOB.shape).mask, BLOB)


@settings(max_examples=60, deadline=None)
@given(
    spacing=st.floats(0.6, 4),
    x=st.floats(-300, 300),
    y=st.floats(-300, 300),
    degrees=st.floats(-180, 180),
    count=st.integers(2, 5),
)
def test_contours_along_pixel_edges_give_their_pixels_back(
    spacing: float, x: float, y: float, degrees: float, count: int
) -> None:
    edges = np.array([[3.5, 2.5], [20.5, 2.5], [20.5, 12.5], [7.5, 12.5], [7.5, 20.5], [3.5, 20.5]])
    expected = np.zeros((40, 34), dtype=bool)
    expected[4:21, 3:13] = expected[4:8, 13:21] = True
    np.testing.assert_array_equal(
        fill_contours(read([edges], affine(spacing, (x, y, 0), degrees), count), (40, 34)).mask, expected
    )


@pytest.mark.parametrize("offset", [0.02, 0.09])
def test_a_place_that_is_a_little_off_is_the_place(offset: float) -> None:
    """As where the positions of the slices were rounded, and their grid runs straight through them."""
    for points in centre_contours(BLOB):
        found, _ = undo_rounding(points + np.array([offset, -offset]), np.full(2, 1e-4))
        np.testing.assert_array_equal(found, points)


def test_what_was_drawn_by_hand_stays_where_it_is_and_its_area_hardly_grows() -> None:
    rng = np.random.default_rng(1)
    angle = np.arange(80) * 2 * math.pi / 80
    areas = []
    for _ in range(200):
        drawn = rng.uniform(14, 18, 2) + 10 * np.column_stack([np.cos(angle), np.sin(angle)])
        points, tolerance = undo_rounding(drawn, np.full(2, 0.1))
        assert points is drawn and tolerance == 0.02
        areas.append(int(fill_contours([Contour(points, tolerance)], BLOB.shape).mask.sum()))
    assert 1 < np.mean(areas) / (math.pi * 100) < 1.006


@pytest.mark.parametrize(
    ("points", "moved"),
    [
        pytest.param([[3.1, 3.1], [7.9, 3.1], [7.9, 6.9], [3.1, 6.9]], 1e-3, id="near places, and by no common offset"),
        pytest.param([[3, 3], [8, 3], [8.28, 7], [3, 7]], 1.5, id="one point of several away, however coarse"),
    ],
)
def test_a_few_points_that_happen_to_be_near_places_stay(points: list[list[float]], moved: float) -> None:
    drawn = np.array(points, dtype=float)
    found, tolerance = undo_rounding(drawn, np.full(2, moved))
    np.testing.assert_array_equal(found, drawn)
    assert 1e-3 <= tolerance <= 0.02
