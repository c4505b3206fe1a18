"""A contour encloses the pixels whose centres lie in it or on it: areas of known shapes, edges, and no gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.collection.contour_sets import Contour, fill_contours
from semiseg.collection.polygons import EXACT, FilledPolygon, fill_polygon

SIZE = (61, 47)


def circle(centre: tuple[float, float], radius: float, points: int = 400) -> NDArray[np.float64]:
    angle = np.arange(points) * 2 * math.pi / points
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)])


def square(left: float, top: float, side: float) -> NDArray[np.float64]:
    return np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]])


def box(i: slice, j: slice) -> NDArray[np.bool_]:
    out = np.zeros(SIZE, dtype=bool)
    out[i, j] = True
    return out


def filled(*contours: NDArray[np.float64]) -> NDArray[np.bool_]:
    return fill_contours([Contour(points) for points in contours], SIZE).mask


def whole(polygon: FilledPolygon, part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    out = np.zeros(SIZE, dtype=bool)
    out[polygon.window] = part
    return out


@pytest.mark.parametrize("radius", [3.3, 9.7, 17.2])
def test_a_circle_encloses_the_centres_that_are_nearer_than_its_radius(radius: float) -> None:
    i, j = np.indices(SIZE)
    np.testing.assert_array_equal(filled(circle((30.2, 22.7), radius, 5000)), np.hypot(i - 30.2, j - 22.7) < radius)


def test_areas_of_circles_come_out_right_on_average() -> None:
    rng = np.random.default_rng(4)
    centres = rng.uniform(18, 27, (200, 2))
    areas = [int(filled(circle((x, y), 11.5)).sum()) for x, y in centres]
    assert np.mean(areas) == pytest.approx(math.pi * 11.5**2, rel=2e-3)


@pytest.mark.parametrize("way", [1, -1])
def test_a_keyhole_cuts_its_hole_whichever_way_it_goes_round(way: int) -> None:
    outer, inner = square(4.5, 4.5, 30), square(14.5, 14.5, 6)[::way]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    np.testing.assert_array_equal(filled(keyhole), box(slice(5, 35), slice(5, 35)) & ~box(slice(15, 21), slice(15, 21)))
    assert fill_polygon(keyhole, SIZE).twice.any() == (way == 1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_contour_through_pixel_centres_keeps_all_of_them(start: int, turned: bool) -> None:
    points = np.roll(square(10, 12, 5), start, axis=0)[:: -1 if turned else 1]
    np.testing.assert_array_equal(filled(points), box(slice(10, 16), slice(12, 18)))


@pytest.mark.parametrize("turned", [False, True])
def test_a_contour_along_pixel_edges_encloses_the_pixels_between_them(turned: bool) -> None:
    points = square(9.5, 11.5, 5)[:: -1 if turned else 1]
    np.testing.assert_array_equal(filled(points), box(slice(10, 15), slice(12, 17)))


def test_a_keyhole_through_pixel_centres_keeps_the_pixels_along_its_whole_way() -> None:
    outer, inner = square(4, 4, 30), square(14, 14, 6)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    np.testing.assert_array_equal(filled(keyhole), box(slice(4, 35), slice(4, 35)) & ~box(slice(15, 20), slice(15, 20)))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[10, 12]], [(10, 12)]),
        ([[10.5, 12]], []),
        ([[10, 12], [10, 12]], [(10, 12)]),
        ([[10, 12], [13, 12]], [(10, 12), (11, 12), (12, 12), (13, 12)]),
        ([[10, 12], [10, 9], [10, 11]], [(10, 9), (10, 10), (10, 11), (10, 12)]),
        ([[10, 12], [13, 9]], [(10, 12), (11, 11), (12, 10), (13, 9)]),
        ([[10, 12], [16, 15]], [(10, 12), (12, 13), (14, 14), (16, 15)]),
        ([[9.5, 12.5], [14.5, 12.5]], []),
    ],
)
def test_contours_without_an_area_are_the_centres_that_they_run_through(
    points: list[list[float]], expected: list[tuple[int, int]]
) -> None:
    for turned in (np.array(points), np.array(points)[::-1]):
        assert [tuple(p) for p in np.argwhere(filled(turned)).tolist()] == expected


def test_no_contours_are_no_pixels() -> None:
    assert not filled().any()


def test_rounding_does_not_decide_about_centres_on_a_contour() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        shaken = square(10, 12, 5) + rng.uniform(-4e-5, 4e-5, (4, 2))
        np.testing.assert_array_equal(filled(shaken), box(slice(10, 16), slice(12, 18)))


def test_what_lies_beyond_the_picture_is_cut_off() -> None:
    assert filled(square(-100, -100, 1000)).all()
    assert filled(square(-1e9, -1e9, 2e9)).all()
    np.testing.assert_array_equal(filled(square(30.5, -50.5, 500)), np.indices(SIZE)[0] > 30)
    assert not filled(square(-40, -40, 30), square(90, 3, 5)).any()
    np.testing.assert_array_equal(filled(np.array([[-9, 20], [99, 20]])), box(slice(None), slice(20, 21)))


polygons = st.lists(st.tuples(st.floats(-5, 66), st.floats(-5, 52)), min_size=1, max_size=12).map(np.array)
on_centres = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=9).map(
    lambda drawn: np.array(drawn, dtype=float)
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(polygons, on_centres), st.sampled_from([EXACT, 0.01, 0.2]))
@example(np.array([[10.0, 12], [16, 15], [10, 12]]), EXACT)
def test_the_rule_agrees_with_counting_crossings_and_distances_pixel_by_pixel(
    points: NDArray[np.float64], tolerance: float
) -> None:
    polygon = fill_polygon(points, SIZE, tolerance)
    inside, path, twice = (whole(polygon, part) for part in (polygon.inside, polygon.path, polygon.twice))
    corners = np.round(points, 4)
    for i, j in np.random.default_rng(1).integers(0, (21, 21) if points.max() <= 20 else SIZE, (60, 2)).tolist():
        turns, away = 0, math.inf
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if (y0 <= j) != (y1 <= j):
                turns += (x0 + (j - y0) * (x1 - x0) / (y1 - y0) <= i) * (1 if y0 < y1 else -1)
            length = (x1 - x0) ** 2 + (y1 - y0) ** 2
            share = min(max(((i - x0) * (x1 - x0) + (j - y0) * (y1 - y0)) / length, 0), 1) if length else 0
            away = min(away, math.hypot(i - x0 - share * (x1 - x0), j - y0 - share * (y1 - y0)))
        if abs(away - tolerance) < 1e-9:
            continue
        assert path[i, j] == (away < tolerance)
        assert inside[i, j] == (turns % 2 == 1 and away > tolerance)
        assert twice[i, j] == (turns % 2 == 0 and turns != 0 and away > tolerance)


@settings(max_examples=60, deadline=None)
@given(st.floats(5, 50), st.floats(5, 40), st.floats(-7, 7), st.floats(-7, 7))
def test_polygons_that_share_an_edge_neither_overlap_nor_leave_a_gap(x: float, y: float, dx: float, dy: float) -> None:
    middle = np.array([[x, y], [x + dx, y + dy]])
    hull = np.array([[-1.0, -1.0], [62.0, -1.0], [62.0, 48.0], [-1.0, 48.0]])
    left = np.concatenate([hull[[3, 0]], middle])
    right = np.concatenate([middle[::-1], hull[[1, 2]]])
    rest = [np.array([hull[0], hull[1], middle[0]]), np.array([hull[2], hull[3], middle[1]])]
    parts = [fill_polygon(part, SIZE) for part in (left, right, *rest)]
    odd = sum(whole(part, part.inside).astype(int) for part in parts) % 2 == 1
    on = np.logical_or.reduce([whole(part, part.path) for part in parts])
    assert (odd | on).all()
